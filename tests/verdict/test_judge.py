"""Choice of the rule for a cell, and values that are never judged."""

from __future__ import annotations

import math
from typing import Any

import pytest
from verdict_cells import MIB, make_cell

from pytest_llmperf.metrics import METRICS, Kind
from pytest_llmperf.verdict.judge import is_judged, judge
from pytest_llmperf.verdict.model import Outcome

TIMED, COUNTER, MEMORY, DIGEST = "tpot_ms", "operators_per_token", "decode_peak_allocated_bytes", "token_digest"
BAD_NUMBERS = [math.nan, math.inf, -math.inf, -1.0, True, False, "4.2", b"4.2"]


@pytest.mark.parametrize("metric", [TIMED, COUNTER, MEMORY])
@pytest.mark.parametrize("value", BAD_NUMBERS)
@pytest.mark.parametrize("window", [[], [4.0, 4.0]])
def test_bad_value_is_invalid(metric: str, value: Any, window: list[float]) -> None:
    """NaN, infinities, negative numbers, booleans and texts are invalid, with a baseline or without."""
    verdict = judge(make_cell(value, window, metric=metric))
    assert verdict.outcome is Outcome.INVALID
    assert repr(value) in verdict.reason


@pytest.mark.parametrize("metric", [TIMED, COUNTER, MEMORY])
@pytest.mark.parametrize("value", BAD_NUMBERS)
def test_bad_baseline_is_invalid(metric: str, value: Any) -> None:
    """A baseline with such a value is not compared; the reason names the run."""
    verdict = judge(make_cell(4.0, [4.0], [4.0, value], metric=metric))
    assert verdict.outcome is Outcome.INVALID
    assert "run-1-1" in verdict.reason


@pytest.mark.parametrize("value", [math.nan, 0.0, True])
def test_bad_confirmation_is_invalid(value: float) -> None:
    """Fresh runs are checked like the first one."""
    assert judge(make_cell(4.0, [4.0]), confirmations=[4.0, value]).outcome is Outcome.INVALID


def test_zero_time_is_invalid_and_zero_count_is_not() -> None:
    """A time of 0 is not a measurement; a count of 0 may be correct."""
    assert judge(make_cell(0.0, [4.0])).outcome is Outcome.INVALID
    assert judge(make_cell(4.0, [0])).outcome is Outcome.INVALID
    assert judge(make_cell(0, [0], metric=COUNTER)).outcome is Outcome.UNCHANGED


@pytest.mark.parametrize("value", [1, 1.0, True, b"x"])
def test_digest_must_be_text(value: Any) -> None:
    """An identity metric accepts texts only."""
    assert judge(make_cell(value, ["a"], metric=DIGEST)).outcome is Outcome.INVALID
    assert judge(make_cell("a", [value], metric=DIGEST)).outcome is Outcome.INVALID


@pytest.mark.parametrize(("metric", "value"), [(TIMED, 4.0), (COUNTER, 467), (MEMORY, MIB), (DIGEST, "a")])
def test_no_baseline_is_new(metric: str, value: float | str) -> None:
    """A value without a baseline is new, never unchanged."""
    assert judge(make_cell(value, metric=metric)).outcome is Outcome.NEW


def test_unmeasured() -> None:
    """Without a value, a cell of the baseline is missing, and any other is new with the reason."""
    missing = judge(make_cell(None, [4.0], reason="the test was skipped"))
    assert (missing.outcome, missing.reason) == (Outcome.MISSING, "the test was skipped")
    new = judge(make_cell(None, reason="needs CUDA"))
    assert (new.outcome, new.reason) == (Outcome.NEW, "not measured: needs CUDA")


def test_informative_is_never_judged() -> None:
    """Judging an informative metric is the caller's error."""
    assert not is_judged(METRICS["load_ms"])
    assert is_judged(METRICS[TIMED])
    with pytest.raises(ValueError, match="informative"):
        judge(make_cell(1.0, [1.0], metric="load_ms"))


def test_family_of_none_is_refused() -> None:
    """A family size below one would loosen the level."""
    with pytest.raises(ValueError, match="family_size"):
        judge(make_cell(4.0, [4.0]), family_size=0)


@pytest.mark.parametrize(
    ("metric", "value", "window", "kind"),
    [
        (TIMED, 4.0, [4.0], Kind.TIMED),
        (COUNTER, 467, [467, 467], Kind.EXACT),
        (COUNTER, 467, [467, 468], Kind.TIMED),
        (MEMORY, 100 * MIB, [90 * MIB, 100 * MIB], Kind.EXACT),
        (MEMORY, 100 * MIB, [80 * MIB, 100 * MIB], Kind.TIMED),
        (DIGEST, "a", ["a"], Kind.IDENTITY),
    ],
)
def test_rule_follows_kind(metric: str, value: float | str, window: list[Any], kind: Kind) -> None:
    """The metric's kind selects the rule; an exact metric that varies is judged as a timed one."""
    assert judge(make_cell(value, window, metric=metric)).kind is kind


def test_demoted_metric_keeps_its_limits() -> None:
    """Such a metric keeps its own floor: 15 MiB more is unchanged, ten times as much is a regression."""
    window = [[100 * MIB, 120 * MIB]] * 10
    assert judge(make_cell(125 * MIB, *window, metric=MEMORY)).outcome is not Outcome.REGRESSED
    worse = judge(make_cell(1100 * MIB, *window, metric=MEMORY))
    assert (worse.outcome, worse.kind, worse.fails) == (Outcome.REGRESSED, Kind.TIMED, True)


@pytest.mark.parametrize(("value", "window"), [(0, [80, 100]), (100, [0, 100])])
def test_demoted_zero_is_inconclusive(value: float, window: list[float]) -> None:
    """Zero has no logarithm, so the cell is inconclusive and does not pass."""
    verdict = judge(make_cell(value, window, metric=COUNTER))
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "is 0" in verdict.reason


def test_only_gating_cells_fail() -> None:
    """A regression fails its test only if the limit gates."""
    assert judge(make_cell(8.0, [4.0] * 5)).fails
    assert not judge(make_cell(8.0, [4.0] * 5, gates=False)).fails
