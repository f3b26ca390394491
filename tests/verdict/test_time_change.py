"""Comparison of two profiles, and its table."""

from __future__ import annotations

import pytest

from pytest_llmperf.measure.operator_profile import OUTSIDE
from pytest_llmperf.metrics import METRICS, Limit
from pytest_llmperf.report.time_text import time_line, time_section
from pytest_llmperf.report.why_text import why_line
from pytest_llmperf.storage.schema import OTHERS, OperatorTime, PhaseProfile
from pytest_llmperf.verdict.model import Cell, Outcome, Verdict
from pytest_llmperf.verdict.time_change import Profiles, time_changes
from pytest_llmperf.verdict.why import Move, why_of

KERNEL = "void gemv<float, 4>(at::Tensor const&)\x1b[31m"


def verdict(metric="tpot_ms", outcome=Outcome.REGRESSED, **more):
    cell = Cell(test="test", metric=METRICS[metric], limit=Limit(tolerate=0.02, catch=0.05, floor=0.0, gates=True),
                value=2.0, workload="w")  # fmt: skip
    return Verdict(cell=cell, outcome=outcome, kind=cell.metric.kind, **more)


def profile(wall_ms, *operators):
    times = [OperatorTime(name=name, place=place, self_ms=ms, calls=calls) for name, place, ms, calls in operators]
    return PhaseProfile(wall_ms=wall_ms, operators=times)


def told(change):
    return why_line(why_of([Move("tpot_ms", "w", 1.5, fails=True)], [], [change], []))


BASE = profile(4.0, ("aten::mm", "host", 2.0, 57.0), (OUTSIDE, "host", 1.5, 0.0), ("aten::cat", "host", 0.3, 8.0),
               ("aten::add", "host", 0.2, 1.0), (KERNEL, "device", 1.0, 57.0))  # fmt: skip
NOW = profile(6.3, ("aten::mm", "host", 3.9, 81.0), (OUTSIDE, "host", 1.51, 0.0), ("aten::add", "host", 0.21, 1.0),
              ("aten::copy_", "host", 0.5, 1.0), (KERNEL, "device", 1.4, 57.0))  # fmt: skip


def sides(base=BASE, now=NOW, phase="decode"):
    return Profiles("baseline of c0ffee", {("test", "w"): {phase: base}}), Profiles(
        "now", {("test", "w"): {phase: now}}
    )


def test_what_takes_longer_comes_first():
    """Added and removed operators differ by their whole time; operators that hardly changed have no row."""
    (found,) = time_changes([verdict()], *sides())
    assert [(one.name, round(one.difference_ms, 3), one.more_calls) for one in found.operators] == [
        ("aten::mm", 1.9, 24.0), ("aten::copy_", 0.5, 1.0), (KERNEL, 0.4, 0.0), ("aten::cat", -0.3, -8.0),
    ]  # fmt: skip
    assert time_line(found.operators[0], "decode", 0.83) == (
        "decode: aten::mm +1.90 ms, 24 more calls; 83 % of the time that a token takes longer"
    )


@pytest.mark.parametrize("width", [60, 80, 160])
def test_the_table_fits_and_steers_no_terminal(width):
    """Long names are folded and control characters are escaped."""
    (found,) = time_changes([verdict()], *sides(), traces="/t")
    lines = "\n".join(time_section(found, width)).splitlines()
    heading = next(number for number, line in enumerate(lines) if line.split()[0] == "operator")
    title = "time per token in decode: 4.00 ms with baseline of c0ffee, 6.30 ms now (profiling takes time):"
    assert " ".join(map(str.strip, lines[:heading])) == title
    columns = [word for word in lines[heading].split() if word != "where"]
    assert columns == ["operator", "base", "now", "change", "calls"]
    (row,) = (line.split() for line in lines[heading:] if line.startswith("  aten::mm"))
    assert row[-9:] == ["2.00", "ms", "3.90", "ms", "+1.90", "ms", "57", "->", "81"]
    assert all(len(line) <= width for line in lines)
    assert not any("\x1b" in line for line in lines)
    assert lines[-1] == "  traces: /t"


def test_an_operator_that_may_be_among_the_others_is_not_said_to_be_new():
    """Its share of the others is unknown, and at most that of the smallest named operator."""
    (found,) = time_changes(
        [verdict()], *sides(base=profile(4.0, ("aten::mm", "host", 3.0, 57.0), (OTHERS, "host", 1.0, 9.0)))
    )
    copy = next(one for one in found.operators if one.name == "aten::copy_")
    assert (copy.base_ms, copy.base_calls, copy.more_calls) == (None, None, 0.0)
    assert "- -> 1" in "\n".join(time_section(found, 100))


def test_nothing_grew():
    """If no operator takes longer, the cause is elsewhere; a longer step alone says nothing more."""
    for now in (BASE, BASE.model_copy(update={"wall_ms": 5.0})):
        (found,) = time_changes([verdict()], *sides(now=now))
        assert told(found) == (
            "decode: no operator takes longer under the profiler: something outside of them changed "
            "(clocks, allocator, host)"
        )


def test_what_is_called_more_often_is_named_however_noisy_the_times_are():
    """Call counts are exact, except for the sum of the others and the last digits of a mean."""
    noisy = [(f"aten::op{number}", "host", 0.5 + number, 1000.0) for number in range(12)]
    base = profile(90.0, *noisy, ("aten::mm", "host", 0.2, 15.0), (OTHERS, "host", 0.1, 82.0))
    quieter = [(name, place, ms / 2, calls + 0.1) for name, place, ms, calls in noisy]
    now = profile(50.0, *quieter, ("aten::mm", "host", 0.1, 27.0), (OTHERS, "host", 0.1, 118.0))
    (found,) = time_changes([verdict()], *sides(base=base, now=now))
    assert len(found.operators) == 10
    assert [(one.name, one.more_calls) for one in found.operators if one.more_calls] == [("aten::mm", 12.0)]
    assert told(found) == "decode: aten::mm -100 us, 12 more calls; under the profiler it takes no longer"
    (found,) = time_changes([verdict()], *sides(base=base, now=now.model_copy(update={"wall_ms": 95.0})))
    assert told(found) == "decode: aten::mm -100 us, 12 more calls; under the profiler it takes no longer"


def test_all_that_is_called_more_often_leaves_room_for_what_takes_longer():
    """If all kernels differ, the table has ten rows, and the largest difference is one of them."""
    many = [(f"aten::op{number}", "host", 0.01, 1.0) for number in range(20)]
    base = profile(4.0, *many, ("aten::mm", "host", 2.0, 15.0), ("aten::cat", "host", 1.0, 3.0))
    now = profile(6.0, *((*one[:3], 2.0) for one in many), ("aten::mm", "host", 3.9, 15.0))
    (found,) = time_changes([verdict()], *sides(base=base, now=now))
    names = [one.name for one in found.operators]
    assert names[0] == "aten::mm"
    assert names[-1] == "aten::cat"
    assert len(names) == 6


def test_what_grew_a_little_everywhere_is_named_too():
    """Ten operators that grew by 0.9 % each add up to 9 %."""
    names = [f"aten::op{number}" for number in range(10)]
    base = profile(4.0, *((name, "host", 0.4, 1000.0) for name in names))
    now = profile(4.36, *((name, "host", 0.436, 2000.0) for name in names))
    (found,) = time_changes([verdict()], *sides(base=base, now=now))
    assert told(found) == ("decode: aten::op0 +36.0 us, 1,000 more calls; 10 % of the time that a token takes longer")
    assert "1,000 -> 2,000" in "\n".join(time_section(found, 80))


def test_each_phase_has_its_own():
    """TTFT is prefill; two metrics of one phase share an explanation."""
    base, now = sides(phase="prefill")
    found = time_changes([verdict("ttft_ms"), verdict("tpot_ms"), verdict("e2e_ms")], base, now)
    assert [(one.phase, one.reason) for one in found] == [
        ("prefill", ""), ("decode", "baseline of c0ffee: no profile was made")
    ]  # fmt: skip
    reason = "time per token in decode: not explained: baseline of c0ffee: no profile was made"
    assert [*time_section(found[1], 100)] == [reason]


@pytest.mark.parametrize(
    "other",
    [
        verdict(outcome=Outcome.UNCHANGED), verdict("weights_bytes"), verdict("operators_per_token"),
        verdict("call_ms"), verdict("output_tokens_per_s"), verdict(against="v1.0"),
    ],
    ids=["unchanged", "bytes", "counted", "callable", "served", "anchored"],
)  # fmt: skip
def test_only_times_that_fail_now_are_explained(other):
    """Only failing times of a request are explained; no profile of the anchor is stored."""
    assert time_changes([other], *sides()) == []
