"""A verdict file with one test of each kind and hostile names, as a pull request can contain."""

from __future__ import annotations

from statistics import fmean

from pytest_llmperf.metrics import METRICS
from pytest_llmperf.stats.interval import Interval
from pytest_llmperf.storage.schema import PhaseWork, Run, StepCounts, Workload
from pytest_llmperf.system.git import Commit, CommitsBetween
from pytest_llmperf.verdict.code_change import CodeChange
from pytest_llmperf.verdict.model import Outcome
from pytest_llmperf.verdict.time_change import OperatorChange, TimeChange
from pytest_llmperf.verdict.verdict_file import CellVerdict, TestVerdicts, VerdictFile
from pytest_llmperf.verdict.why import Move, why_of
from pytest_llmperf.verdict.work_change import work_change

HOSTILE = "</code><img src=x onerror=alert(1)> `a`|b @octocat #1 $x$ [l](u)\n::error::owned\x1b[31m"

WORKLOAD = Workload(
    engine="transformers", model=HOSTILE, revision=None, quantization="nf4", dtype="bfloat16", attention="sdpa",
    execution="generate", batch_size=8, input_tokens=64, output_tokens=64, sampling="greedy", prompt_sha256="0" * 64,
)  # fmt: skip


def cell(outcome, metric="tpot_ms", *, value=4.2, baseline=4.0, gates=True, candidates=(), sentence="", **more):  # noqa: PLR0913  # the fields of a cell
    compared = outcome in {Outcome.REGRESSED, Outcome.IMPROVED, Outcome.UNCHANGED, Outcome.INCONCLUSIVE}
    ratio = fmean(candidates or [value]) / baseline if compared else None
    return CellVerdict(
        metric=metric, unit=METRICS[metric].unit, workload=WORKLOAD.hash, outcome=outcome, gates=gates,
        fails=gates and outcome is Outcome.REGRESSED, value=value, baseline=baseline if compared else None, ratio=ratio,
        interval=Interval(low=ratio * 0.9, high=ratio * 1.1, level=0.95) if ratio else None, limit_ratio=1.02,
        tolerate=0.02, catch=0.05, minimum_detectable_effect=None, p_value=None, runs=5, sessions=5, blocks=0,
        candidates=list(candidates), **more,
        sentence=sentence or f"{METRICS[metric].title} {outcome.value} of a sentence",
    )  # fmt: skip


def a_test(name, *cells, error="", file="tests/test_perf.py", line=7):
    return TestVerdicts(
        test=name, file=file, line=line, error=error, failed=bool(error) or any(cell.fails for cell in cells),
        workloads={WORKLOAD.hash: WORKLOAD}, cells=list(cells), reproduce=f"pytest --llmperf '--llmperf-only={name}'",
    )  # fmt: skip


def time_change(name):
    """Return the times of a phase with an operator that takes longer and is called more often."""
    grown = OperatorChange(name=name, place="host", base_ms=2.0, now_ms=3.9, base_calls=57, now_calls=81)
    return TimeChange(
        workload="w", phase="decode", base="baseline of c0ffee", base_ms=4.0, now_ms=6.0, operators=(grown,)
    )


def phase_work(operators, flops, bytes, *, growth=(), unknown=(), **more):  # noqa: A002  # named as the field
    """Return counted work of four steps, of which the totals grow by ``growth``."""
    first = {"operators": 0.0, "flops": 0.0, "bytes": 0.0, "allocations": 2.0, "allocated_bytes": 64.0}
    last = {name: amount + 3 * dict(growth).get(name, 0.0) for name, amount in first.items()}
    fields = {"allocations": 2, "allocated_bytes": 64} | more
    return PhaseWork(
        steps=4, operators=operators, flops=flops, bytes=bytes, **fields, first=StepCounts(**first),
        last=StepCounts(**last), without_formula=list(unknown),
    )  # fmt: skip


def work_of(before, after, phase="decode", *, workload="w", base="baseline of c0ffee"):
    """Return the change from one to the other."""
    return work_change(before, after, workload=workload, phase=phase, base=base)


def why(*, work=(), times=(), code=None, metric="tpot_ms", ratio=1.5, against=""):  # noqa: PLR0913  # the parts of a text
    """Return why a metric of workload ``w`` regressed."""
    moves = [Move(metric, "w", ratio, fails=True, against=against)]
    return why_of(moves, work, times, [code] if code else [])


def hostile_why(workload="w"):
    """Return an explanation in which every name is hostile."""
    between = CommitsBetween(1, 0, Commit("c" * 40, f"{HOSTILE} ::error::owned", f"{HOSTILE} ::error::owned"))
    code = CodeChange(base="b" * 40, now="c" * 40, between=between, differences=(f"driver: {HOSTILE} -> 2",))
    moves = [Move("tpot_ms", workload, 1.5, fails=True)]
    return why_of(moves, [hostile_work(workload)], [time_change(HOSTILE)], [code])


def hostile_work(workload="w"):
    """Return a change of work in which every name is hostile."""
    before = phase_work({"aten::mm": 1}, {"float32": 1.0}, {"float32": 1.0}, unknown=[HOSTILE])
    after = phase_work({HOSTILE * 9: 5, HOSTILE: 4}, {HOSTILE: 1.0}, {HOSTILE: 2.0}, unknown=[HOSTILE])
    return work_of(before, after, workload=workload, base=HOSTILE)


def verdict_file(*tests, **more):
    outcomes = [one.outcome for test in tests for one in test.cells if one.counts]
    outcomes += [Outcome.ERROR for test in tests if test.error]
    run = Run(
        run_id="r", session_id="s", time="2026-01-01T00:00:00+00:00", commit="ab" * 20, dirty=False, environment={}
    )
    given = {
        "exit_code": 1, "failed": any(test.failed for test in tests), "breach": "", "device_key": "nvidia-h200",
        "run": run, "injected": [], "missing": [], "differences": [],
    }  # fmt: skip
    return VerdictFile(
        tool="pytest-llmperf 0",
        outcomes={outcome: outcomes.count(outcome) for outcome in Outcome if outcome in outcomes},
        decided=sum(outcome.decided for outcome in outcomes),
        total=len(outcomes),
        tests=list(tests),
        **{**given, **more},
    )


SAMPLE = verdict_file(
    a_test("test_perf.py::test_fine", cell(Outcome.UNCHANGED, value=4.01), cell(Outcome.NEW, "output_tokens_per_s")),
    a_test(
        f"test_perf.py::test_slow[{HOSTILE}]",
        cell(Outcome.REGRESSED, value=9.0, candidates=[9.0, 6.0, 6.0]),
        cell(Outcome.REGRESSED, "decode_tokens_per_s", value=1000.0, baseline=1500.0, gates=False),
        cell(Outcome.REGRESSED, "weights_bytes", value=3 * 2**30, baseline=2**30, against="v1.0"),
        cell(Outcome.INCONCLUSIVE, "ttft_ms", value=50.0, baseline=49.0,
             sentence=f"TTFT ×1.02: 50.0 ms, baseline 49.0 ms; inconclusive: base differs in ttft of {HOSTILE}"),
    ),
    a_test("test_perf.py::test_broken", error=f"ValueError: {HOSTILE}"),
    missing=[f"test_perf.py::test_gone[{HOSTILE}]"],
    differences=["driver: 580.1 -> 581.0"],
)  # fmt: skip
