"""Comparison of the counted work of two sides, which base it is compared with, and which verdicts it explains."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.metrics import METRICS, Limit
from pytest_llmperf.report.work_text import work_line
from pytest_llmperf.storage.schema import (
    Baseline,
    Observation,
    PhaseWork,
    Run,
    StepCounts,
    StoredWork,
    TestResult,
    Warmup,
    Workload,
)
from pytest_llmperf.verdict.comparison import Comparison
from pytest_llmperf.verdict.model import Cell, Outcome, Verdict
from pytest_llmperf.verdict.work_change import (
    COUNTED_METRICS,
    FOLLOWING,
    NOT_STORED,
    OTHER_ENVIRONMENT,
    TIMED,
    BaseWork,
    telling,
    work_change,
    work_changes,
)

TEST = "t.py::test_decode"
WORKLOAD = Workload(
    engine="transformers", model="m", revision=None, quantization="fp32", dtype="float32", attention="sdpa",
    execution="loop", batch_size=1, input_tokens=4, output_tokens=4, sampling="greedy", prompt_sha256="0",
)  # fmt: skip

AMOUNTS = st.integers(0, 2**40).map(float)
STEPS = st.builds(
    StepCounts, operators=AMOUNTS, flops=AMOUNTS, bytes=AMOUNTS, allocations=AMOUNTS, allocated_bytes=AMOUNTS
)
PHASES = st.builds(
    PhaseWork,
    steps=st.integers(1, 64),
    operators=st.dictionaries(st.sampled_from([f"aten::op{number}" for number in range(8)]), AMOUNTS),
    flops=st.dictionaries(st.sampled_from(["float32", "bfloat16"]), AMOUNTS),
    bytes=st.dictionaries(st.sampled_from(["float32", "bfloat16", "int64"]), AMOUNTS),
    allocations=AMOUNTS,
    allocated_bytes=AMOUNTS,
    first=STEPS,
    last=STEPS,
    without_formula=st.lists(st.sampled_from(["custom::a", "custom::b"]), unique=True),
)


def compared(before, after, phase="decode"):
    return work_change(before, after, workload="w", phase=phase)


@given(PHASES)
def test_equal_work_is_no_change(work):
    """Nothing is listed, and the line says what is equal."""
    found = compared(work, work)
    assert found.is_equal
    assert {found.operators, found.flops, found.bytes, found.growth} == {()}
    assert work_line(found) == "decode: the same operators, FLOPs and bytes"


@given(PHASES, PHASES)
def test_the_differences_add_up_to_that_of_the_total(before, after):
    """For operators by name, and for FLOPs and bytes by dtype."""
    found = compared(before, after)
    for name, changed in (("operators", found.operators), ("flops", found.flops), ("bytes", found.bytes)):
        assert sum(Fraction(one.difference) for one in changed) == found.total(name).difference


@given(PHASES, PHASES)
def test_the_largest_change_is_named_first(before, after):
    """In the list, and in the line."""
    found = compared(before, after)
    sizes = [abs(one.difference) for one in found.operators]
    assert sizes == sorted(sizes, reverse=True)
    assert all(sizes)
    names = {*before.operators, *after.operators}
    largest = max((abs(after.operators.get(name, 0) - before.operators.get(name, 0)) for name in names), default=0)
    assert (sizes or [0])[0] == largest
    if found.operators:
        named = work_line(found).partition(": ")[2].partition(": ")[2]
        assert named.startswith(f"{found.operators[0].name} ")


@given(PHASES, PHASES)
def test_the_sides_exchanged_mirror_each_other(before, after):
    """The same names, with both values exchanged."""
    there, back = compared(before, after), compared(after, before)
    assert there.without_formula == back.without_formula
    for name in ("totals", "operators", "flops", "bytes", "growth"):
        mirrored = {(one.name, one.after, one.before) for one in getattr(back, name)}
        assert {(one.name, one.before, one.after) for one in getattr(there, name)} == mirrored


@given(PHASES, PHASES)
def test_different_work_never_reads_as_equal(before, after):
    """A change of any count shows."""
    fields = ("operators", "flops", "bytes", "allocations", "allocated_bytes")
    same = all(getattr(before, name) == getattr(after, name) for name in fields)
    if not same and before.steps == after.steps:
        found = compared(before, after)
        listed = bool(found.operators or found.flops or found.bytes)
        assert found.is_equal is not (listed or bool(found.growth) or any(one.difference for one in found.totals))
        assert (work_line(found) == "decode: the same operators, FLOPs and bytes") is found.is_equal


def work(**changes):
    step = StepCounts(operators=10, flops=100, bytes=1000, allocations=2, allocated_bytes=64)
    fields = {
        "steps": 3, "operators": {"aten::mm": 10.0}, "flops": {"float32": 100.0}, "bytes": {"float32": 1000.0},
        "allocations": 2, "allocated_bytes": 64, "first": step, "last": step,
    }  # fmt: skip
    return PhaseWork(**fields | changes)


def result(**phases):
    observation = Observation(
        run="now", test=TEST, workload=WORKLOAD.hash, clock="fake", requests=1, tokens_produced=4,
        attention_requested=None, warmup=Warmup(requests=0, steady=False, drift=None),
    )  # fmt: skip
    return TestResult(workload=WORKLOAD, observation=observation, cells=[], work=phases)


def stored(*rows, test=TEST):
    """Return a baseline; each row is a run's day, environment and number of operators."""
    runs = [
        Run(run_id=f"run {day}", session_id="s", time=f"2026-01-{day:02}", commit="c0ffee" + "0" * 34, dirty=False,
            environment=environment)
        for day, environment, _ in rows
    ]  # fmt: skip
    return Baseline(
        device_key="cpu",
        runs=runs,
        workloads={WORKLOAD.hash: WORKLOAD},
        work=[
            StoredWork(test=test, workload=WORKLOAD.hash, run=run.run_id,
                       phases={"decode": work(operators={"aten::mm": count})})
            for run, (_, _, count) in zip(runs, rows, strict=True)
        ],
    )  # fmt: skip


@pytest.mark.parametrize("cpu_model", ["here", "elsewhere"])
def test_the_base_is_the_latest_run_with_comparable_counts(cpu_model):
    """Other versions of torch count otherwise; another processor model counts the same."""
    here = {"torch": "2.13", "cpu_model": "here"}
    rows = (2, {**here, "cpu_model": cpu_model}, 12.0), (1, here, 10.0), (3, {**here, "torch": "2.14"}, 99.0)
    found = Comparison(stored(*rows), here).stored_work(result())
    assert found.name == "baseline of c0ffee000000"
    assert found.phases["decode"].operators == {"aten::mm": 12.0}


@pytest.mark.parametrize(
    ("baseline", "why"),
    [
        (None, NOT_STORED),
        (stored(), NOT_STORED),
        (stored((1, {"torch": "2.13"}, 1.0), test="t.py::other"), NOT_STORED),
        (stored((1, {"torch": "2.14"}, 1.0)), OTHER_ENVIRONMENT),
    ],
    ids=["no baseline", "no work", "of another test", "of another version"],
)
def test_a_base_without_comparable_work_gives_the_reason(baseline, why):
    """One line, and no comparison with something else."""
    base = Comparison(baseline, {"torch": "2.13"}).stored_work(result())
    (change,) = work_changes(result(decode=work()), base)
    assert (change.reason, change.is_equal) == (f"baseline: {why}", False)
    assert work_line(change) == f"decode: not compared: baseline: {why}"


def test_only_what_this_run_counted_is_compared():
    """A compiled decode counts no operators: nothing is said of it."""
    base = BaseWork("baseline", {"prefill": work(), "decode": work()})
    assert work_changes(result(), base) == []
    assert [change.phase for change in work_changes(result(prefill=work()), base)] == ["prefill"]


def verdict(metric="operators_per_token", outcome=Outcome.REGRESSED, *, gates=True, workload="w", against=""):
    limit = Limit(tolerate=0.0, catch=0.0, floor=0.0, gates=gates)
    cell = Cell(test=TEST, metric=METRICS[metric], limit=limit, value=2.0, workload=workload)
    return Verdict(cell=cell, outcome=outcome, kind=cell.metric.kind, against=against)


SAME = compared(work(), work())
MORE = compared(work(), work(operators={"aten::mm": 12.0}))
UNKNOWN = SAME.model_copy(update={"totals": (), "reason": f"baseline: {NOT_STORED}"})


@pytest.mark.parametrize(
    ("change", "cause", "tells"),
    [
        (MORE, verdict(), True),
        (MORE, verdict(outcome=Outcome.IMPROVED), True),
        (UNKNOWN, verdict(), True),
        (SAME, verdict(), True),
        (MORE, verdict(outcome=Outcome.UNCHANGED), False),
        (MORE, verdict(gates=False), False),
        (MORE, verdict(workload="another"), False),
        (MORE, verdict(against="v1.0"), False),
        (MORE.model_copy(update={"against": "v1.0"}), verdict(against="v1.0"), True),
        (MORE, verdict("tpot_ms"), True),
        (SAME, verdict("tpot_ms"), True),
        (UNKNOWN, verdict("tpot_ms"), True),
        (MORE, verdict("tpot_ms", Outcome.IMPROVED), False),
        (MORE, verdict("tpot_ms", Outcome.INCONCLUSIVE), False),
        (MORE, verdict("ttft_ms"), False),
        (MORE, verdict("decode_peak_allocated_bytes"), True),
        (SAME, verdict("decode_peak_allocated_bytes"), False),
        (UNKNOWN, verdict("decode_peak_allocated_bytes"), False),
        (MORE, verdict("weights_bytes"), False),
    ],
)
def test_which_verdicts_the_work_explains(change, cause, tells):
    """Counted changes that gate and slower times of the same phase; of memory only if the work differs."""
    assert telling([change], [cause]) == ([change] if tells else [])


def test_the_metrics_of_each_phase_exist():
    """A metric that was renamed would no longer explain itself."""
    assert set().union(*COUNTED_METRICS.values(), *TIMED.values(), *FOLLOWING.values()) <= METRICS.keys()
