"""Choice of the most telling fact: by its share of the slowdown, whatever the order of the input."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.metrics import METRICS
from pytest_llmperf.report.why_text import why_line, why_text
from pytest_llmperf.storage.schema import PhaseWork, StepCounts
from pytest_llmperf.system.git import Commit, CommitsBetween
from pytest_llmperf.verdict.code_change import CodeChange
from pytest_llmperf.verdict.time_change import OperatorChange, TimeChange
from pytest_llmperf.verdict.why import Move, Why, moves_of, why_of
from pytest_llmperf.verdict.work_change import COUNTED_METRICS, TIMED, WorkChange, work_change

SLOWER = Move("tpot_ms", "w", 1.5, fails=True)
HOSTILE = "</pre><img src=x> @octocat #1\n::error::owned\x1b[31m ::error::owned"


def counts(operators=1.0, flops=1.0, moved=1.0):
    step = StepCounts(operators=0.0, flops=0.0, bytes=0.0, allocations=2.0, allocated_bytes=64.0)
    return PhaseWork(
        steps=4, operators={HOSTILE: 10 * operators}, flops={"float32": 1e6 * flops}, bytes={HOSTILE: 1e6 * moved},
        allocations=2, allocated_bytes=64, first=step, last=step,
    )  # fmt: skip


def work(operators=1.0, flops=1.0, moved=1.0, *, phase="decode", workload="w"):
    """Return work that grew by these factors."""
    return work_change(counts(), counts(operators, flops, moved), workload=workload, phase=phase, base="base")


def operator(name, added_ms, *, place="host", calls=(5.0, 5.0)):
    return OperatorChange(
        name=name, place=place, base_ms=1.0, now_ms=1.0 + added_ms, base_calls=calls[0], now_calls=calls[1]
    )


def times(*operators, added_ms=2.0, phase="decode", workload="w"):
    return TimeChange(
        workload=workload, phase=phase, base="base", base_ms=4.0, now_ms=4.0 + added_ms, operators=operators
    )


def cause(moves, works=(), profiles=(), codes=()):
    found = why_of(moves, works, profiles, codes).cause
    return (found.kind, found.name)


@pytest.mark.parametrize(
    ("changed", "profiles", "expected"),
    [
        (work(moved=2.0), [], ("work", "bytes")),
        (work(moved=2.0, operators=1.1), [], ("work", "bytes")),
        (work(moved=1.01, operators=1.9), [], ("work", "operators")),
        (work(moved=1.01), [times(operator("aten::mm", 1.9))], ("host", "aten::mm")),
        (work(moved=2.0), [times(operator("aten::mm", 1.9))], ("work", "bytes")),
        (work(moved=1.01), [times(operator("aten::mm", 0.0))], ("work", "bytes")),
        (work(), [times(operator("wait", 2.0), operator("gemv", 1.5, place="device"))], ("device", "gemv")),
        (work(), [times(operator("wait", 2.0), operator("gemv", 0.1, place="device"))], ("host", "wait")),
        (work(), [times(operator("a", 0.4), operator("b", 0.6))], ("host", "b")),
        (work(), [times(operator("aten::mm", -0.1), added_ms=-0.1)], ("same", "")),
        (work(), [], ("same", "")),
        (work(moved=0.5), [], ("work", "bytes")),
    ],
    ids=[
        "bytes of a decode", "bytes beside a few operators", "operators beside a few bytes", "a slower operator",
        "work before its operators", "little work and no slower operator", "a kernel before the host's wait",
        "a small kernel after the host", "the largest of small ones", "faster under the profiler", "the same work",
        "less work",
    ],
)  # fmt: skip
def test_what_accounts_for_most_of_a_slowdown_leads(changed, profiles, expected):
    """Counted work leads kernels, and kernels operators, if each accounts for half of it."""
    assert cause([SLOWER], [changed], profiles) == expected


def test_a_decode_waits_for_bytes_and_a_prefill_computes():
    """Where several totals grew enough, that which usually limits the phase leads."""
    grown = {"operators": 2.0, "flops": 2.0, "moved": 2.0}
    assert cause([SLOWER], [work(**grown)]) == ("work", "bytes")
    slower = Move("ttft_ms", "w", 1.5, fails=True)
    assert cause([slower], [work(**grown, phase="prefill")]) == ("work", "flops")


def test_a_rate_that_fell_is_a_slowdown():
    """Its ratio is below 1, and less work in the same time would explain nothing."""
    slower = Move("decode_tokens_per_s", "w", 1 / 1.5, fails=True)
    assert why_of([slower], [work(moved=1.5)], [], []).cause.share == pytest.approx(1.0)


def test_the_phase_that_became_slower_leads():
    """If work changed in both phases, the one of a slower time; without one, the decode."""
    counted = [Move("moved_bytes_per_token", "w", 2.0, fails=True), Move("prefill_moved_bytes", "w", 2.0, fails=True)]
    works = [work(moved=2.0), work(moved=2.0, phase="prefill")]
    assert why_of(counted, works, [], []).cause.phase == "decode"
    slower = [*counted, Move("ttft_ms", "w", 1.5, fails=True)]
    assert why_of(slower, works, [], []).cause.phase == "prefill"


def test_the_share_of_a_small_change_is_told():
    """Two per cent more bytes do not double a time."""
    line = why_line(why_of([Move("tpot_ms", "w", 2.0, fails=True)], [work(moved=1.02)], [], []))
    assert line.startswith("decode: bytes ×1.02 ")
    assert line.endswith("; little beside TPOT ×2.00")


def test_a_metric_of_no_phase_is_explained_by_the_code_or_not_at_all():
    """Weights are neither counted nor profiled."""
    heavier = Move("weights_bytes", "w", 2.0, fails=True)
    assert why_line(why_of([heavier], [], [], [])) == "not explained: nothing is counted or profiled of weights"
    commit = Commit("c" * 40, "Jane Doe", "Load in float32")
    code = CodeChange(base="b" * 40, now="c" * 40, between=CommitsBetween(1, 0, commit))
    assert why_text(why_of([heavier], [], [], [code]), 80) == f"commit: {'c' * 12} Jane Doe: Load in float32"


def test_what_is_unknown_gives_the_reason():
    """The counted work comes first."""
    unknown = WorkChange(workload="w", phase="decode", reason="baseline: no work is stored")
    missing = TimeChange(workload="w", phase="decode", reason="baseline: no profile")
    assert why_line(why_of([SLOWER], [unknown], [missing], [])) == "not explained: baseline: no work is stored"
    assert why_line(why_of([SLOWER], [], [missing], [])) == "not explained: baseline: no profile"


def test_improvements_are_explained_by_counted_work_only():
    """Nothing is profiled for them. Without a change there is nothing to explain."""
    fewer = [Move("operators_per_token", "w", 0.5, fails=False)]
    assert cause(fewer, [work(operators=0.5)]) == ("work", "operators")
    assert why_of(fewer, [], [], []) is None
    assert why_of([], [], [], []) is None
    assert moves_of([]) == []


def test_the_code_is_that_of_the_base_compared_with():
    """An anchor lies further back than the baseline."""
    codes = [CodeChange(base="b" * 40), CodeChange(against="v1.0", base="a" * 40)]
    anchored = Move("tpot_ms", "w", 1.5, fails=True, against="v1.0")
    assert why_of([anchored], [work(moved=2.0).model_copy(update={"against": "v1.0"})], [], codes).code is codes[1]
    assert why_of([SLOWER, anchored], [work(moved=2.0)], [], codes).code is codes[0]


@pytest.mark.parametrize("kind", ["work", "device", "host", "same", "code", "unknown"])
def test_a_cause_that_a_hand_edited_file_does_not_contain_is_not_explained(kind):
    """Verdict files come from pull requests."""
    read = {"kind": kind, "metric": "tpot_ms", "ratio": 1.5, "workload": "w", "against": "", "phase": None, "name": "x"}
    assert why_text(Why.model_validate({"cause": read}), 80).startswith("not explained: ")


PHASES = st.sampled_from(["prefill", "decode"])
WORKLOADS = st.sampled_from(["w", "v"])
FACTORS = st.sampled_from([0.5, 1.0, 1.01, 1.3, 2.0])
NAMES = st.sampled_from(["aten::mm", "aten::cat", "(outside of operators)", HOSTILE])
MOVES = st.builds(
    Move,
    st.sampled_from(sorted(METRICS)),
    WORKLOADS,
    st.one_of(st.none(), st.floats(0.0, 1e9), st.sampled_from([1.0, 1.02, 1.5, float("inf"), float("nan")])),
    fails=st.booleans(),
    against=st.sampled_from(["", "v1.0"]),
)
WORKS = st.builds(work, FACTORS, FACTORS, FACTORS, phase=PHASES, workload=WORKLOADS)
TIMES = st.builds(
    lambda operators, **more: times(*operators, **more),
    st.lists(
        st.builds(operator, NAMES, st.floats(-1.0, 3.0), place=st.sampled_from(["host", "device"])),
        unique_by=lambda one: (one.name, one.place),
        max_size=4,
    ),
    added_ms=st.floats(-1.0, 3.0), phase=PHASES, workload=WORKLOADS,
)  # fmt: skip
CODES = st.sampled_from(
    [[], [CodeChange(base="b" * 40, now="c" * 40, differences=(f"driver: {HOSTILE} ::error:: -> 2",))]]
)


def once(found):
    """Return the first of each workload and phase: a test has one of each."""
    return [*{(one.workload, one.phase): one for one in found}.values()]


@given(
    st.lists(MOVES, max_size=4), st.lists(WORKS, max_size=4).map(once), st.lists(TIMES, max_size=4).map(once), CODES,
    st.randoms(use_true_random=False),
)  # fmt: skip
def test_every_regression_has_one_cause_whatever_the_order(moves, works, profiles, codes, random):
    """It is told in one printable line, which begins the text; no line is a command for a GitHub runner."""
    found = why_of(moves, works, profiles, codes)
    if not any(move.fails for move in moves):
        assert (found is None) == (not (moves and works))
    if found is None:
        return
    shuffled = [random.sample(one, len(one)) for one in (moves, works, profiles)]
    assert why_of(*shuffled, codes).cause.model_dump_json() == found.cause.model_dump_json()
    line = why_line(found)
    assert line
    assert line.isprintable()
    for width in (60, 160):
        lines = why_text(found, width).split("\n")
        assert all(one.isprintable() and not one.lstrip().startswith("::") for one in lines)
    assert lines[0][:20] == line[:20]
    assert Why.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize("metrics", [*permutations(["tpot_ms", "e2e_ms", "operators_per_token"])])
def test_a_slower_time_leads_a_count_that_does_not_explain_it(metrics):
    """One more operator is exact, and twice the bytes are what a token takes longer for."""
    moves = [Move(metric, "w", 1.5, fails=True) for metric in metrics]
    assert cause(moves, [work(operators=1.1, moved=2.0)]) == ("work", "bytes")
    assert cause(moves, [work(operators=1.1)], [times(operator("aten::mm", 1.9))]) == ("host", "aten::mm")
    assert cause(moves, [work(operators=1.1)]) == ("work", "operators")


def test_every_timed_and_counted_metric_has_a_phase():
    """A metric that was renamed would no longer be explained."""
    for kinds in (COUNTED_METRICS, TIMED):
        assert {Move(metric, "w", 1.0, fails=True).phase for metrics in kinds.values() for metric in metrics} == {
            "prefill", "decode",
        }  # fmt: skip
