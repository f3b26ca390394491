"""Rule for exact metrics: the limit beside the window's worst value, and windows that vary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from verdict_cells import MIB, make_cell

from pytest_llmperf.metrics import Better, Kind
from pytest_llmperf.verdict.exact import judge_exact, judge_identity, limit_value, varies
from pytest_llmperf.verdict.model import Cell, Outcome, Verdict

COUNTER = "operators_per_token"
MEMORY = "decode_peak_allocated_bytes"


def larger_is_better(cell: Cell) -> Cell:
    return replace(cell, metric=replace(cell.metric, better=Better.LARGER))


@pytest.mark.parametrize(
    ("value", "outcome"), [(468, Outcome.REGRESSED), (467, Outcome.UNCHANGED), (466, Outcome.IMPROVED)]
)
def test_counter_has_no_slack(value: int, outcome: Outcome) -> None:
    """With a single baseline run, a difference of one operator is decisive."""
    assert judge_exact(make_cell(value, [467], metric=COUNTER)).outcome is outcome


@pytest.mark.parametrize(
    ("mib", "outcome"),
    [(264.5, Outcome.REGRESSED), (264, Outcome.UNCHANGED), (232, Outcome.UNCHANGED), (231.5, Outcome.IMPROVED)],
)
def test_memory_has_an_absolute_floor(mib: float, outcome: Outcome) -> None:
    """Below 1600 MiB the floor of 16 MiB is wider than one per cent, in both directions."""
    assert judge_exact(make_cell(mib * MIB, [248 * MIB] * 2, metric=MEMORY)).outcome is outcome


@pytest.mark.parametrize(("mib", "outcome"), [(10110, Outcome.REGRESSED), (10090, Outcome.UNCHANGED)])
def test_memory_has_a_relative_slack(mib: float, outcome: Outcome) -> None:
    """Above 1600 MiB the slack is one per cent of the window's largest value."""
    assert judge_exact(make_cell(mib * MIB, [10000 * MIB, 9999 * MIB], metric=MEMORY)).outcome is outcome


@pytest.mark.parametrize(
    ("value", "outcome"),
    [(98, Outcome.REGRESSED), (99, Outcome.UNCHANGED), (103, Outcome.UNCHANGED), (104, Outcome.IMPROVED)],
)
def test_larger_is_better_mirrors(value: float, outcome: Outcome) -> None:
    """If larger is better, the limit is below the window's smallest value."""
    cell = larger_is_better(make_cell(value, [100, 102], metric=COUNTER, floor=1.5))
    verdict = judge_exact(cell)
    assert (verdict.outcome, verdict.baseline, limit_value(cell)) == (outcome, 100, 98.5)


def test_evidence() -> None:
    """The verdict holds the baseline, ratio, limit, runs and sessions."""
    verdict = judge_exact(make_cell(312 * MIB, [248 * MIB] * 2, [248 * MIB], metric=MEMORY))
    assert verdict.kind is Kind.EXACT
    assert verdict.baseline == 248 * MIB
    assert verdict.ratio == pytest.approx(312 / 248)
    assert verdict.limit_ratio == pytest.approx(264 / 248)
    assert (verdict.runs, verdict.sessions) == (3, 2)


def test_baseline_of_zero_has_no_ratio() -> None:
    """A baseline of 0 still has a limit, but no ratio."""
    verdict = judge_exact(make_cell(1, [0, 0], metric=COUNTER))
    assert (verdict.outcome, verdict.ratio, verdict.limit_ratio) == (Outcome.REGRESSED, None, None)


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=8))
def test_values_of_the_window_never_regress(figures: list[int]) -> None:
    """A value that is in the window is unchanged, whatever the order of the runs."""
    for value in figures:
        verdict = judge_exact(make_cell(value, figures, metric=MEMORY))
        mirrored = judge_exact(make_cell(value, figures[::-1], metric=MEMORY))
        assert verdict.outcome is not Outcome.REGRESSED
        assert verdict.outcome is mirrored.outcome


ORDER = {Outcome.IMPROVED: 0, Outcome.UNCHANGED: 1, Outcome.REGRESSED: 2}
counts = st.lists(st.integers(0, 10**9), min_size=1, max_size=8)


@given(counts, counts, st.booleans())
def test_monotone_in_the_value(figures: list[int], values: list[int], larger: bool) -> None:
    """A larger value never gets a better verdict, or if larger is better, never a worse one."""
    cells = [make_cell(value, figures, metric=MEMORY) for value in sorted(values, reverse=larger)]
    ranks = [ORDER[judge_exact(larger_is_better(cell) if larger else cell).outcome] for cell in cells]
    assert ranks == sorted(ranks)


@given(counts, st.integers(0, 10**9), st.integers(-10, 10))
def test_units(figures: list[int], value: int, power: int) -> None:
    """Values and floor in another unit give the same outcome and ratio."""
    cell, scale = make_cell(value, figures, metric=MEMORY), 2.0**power
    floor = cell.limit.floor * scale
    scaled = make_cell(value * scale, [figure * scale for figure in figures], metric=MEMORY, floor=floor)
    a, b = judge_exact(cell), judge_exact(scaled)
    assert (a.outcome, a.ratio, a.limit_ratio) == (b.outcome, b.ratio, b.limit_ratio)


@given(counts, st.integers(0, 10**9), st.integers(1, 5), st.randoms(use_true_random=False))
def test_order_and_repeats_of_runs(figures: list[int], value: int, repeats: int, random: Random) -> None:
    """The order and the repetition of the window's figures do not matter."""
    window = random.sample(figures, len(figures)) + figures[:1] * repeats
    a, b = (judge_exact(make_cell(value, runs, metric=MEMORY)) for runs in (figures, window))
    assert (a.outcome, a.baseline, a.ratio) == (b.outcome, b.baseline, b.ratio)


@pytest.mark.parametrize("rule", [judge_exact, judge_identity])
def test_nothing_to_compare_with_is_no_verdict(rule: Callable[[Cell], Verdict]) -> None:
    """An empty window is the caller's error, since `judge` calls such a cell new."""
    with pytest.raises(ValueError, match="empty"):
        rule(make_cell(1, metric=COUNTER))


@pytest.mark.parametrize(
    ("metric", "figures", "expected"),
    [
        (COUNTER, [467, 467, 467], False),
        (COUNTER, [467, 467, 468], True),
        (COUNTER, [467], False),
        (MEMORY, [248 * MIB, 264 * MIB], False),
        (MEMORY, [248 * MIB, 265 * MIB], True),
    ],
)
def test_varies(metric: str, figures: list[int], *, expected: bool) -> None:
    """A window varies if its runs differ by more than the slack; a counter has no slack."""
    assert varies(make_cell(1, figures, metric=metric)) is expected


@pytest.mark.parametrize(
    ("window", "value", "outcome"),
    [
        (["a"], "a", Outcome.UNCHANGED),
        (["a", "a"], "a", Outcome.UNCHANGED),
        (["a"], "b", Outcome.REGRESSED),
        (["a", "b"], "a", Outcome.INCONCLUSIVE),
        (["a", "b"], "c", Outcome.INCONCLUSIVE),
    ],
)
def test_identity(window: list[str], value: str, outcome: Outcome) -> None:
    """A digest equals all values of the window, differs from them, or the window itself is inconsistent."""
    verdict = judge_identity(make_cell(value, window, metric="token_digest"))
    assert verdict.outcome is outcome
    assert not verdict.fails
    assert ("not deterministic" in verdict.reason) is (outcome is Outcome.INCONCLUSIVE)
