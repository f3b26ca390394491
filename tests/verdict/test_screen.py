"""Screen: reachable outcomes, invariances, monotonicity, and error rates in simulation."""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from verdict_cells import make_cell

from pytest_llmperf.stats.student_t import SD_FLOOR
from pytest_llmperf.verdict.judge import judge
from pytest_llmperf.verdict.model import Cell, Outcome
from pytest_llmperf.verdict.prior import DEFAULT_PRIOR, Prior, prior_of
from pytest_llmperf.verdict.screen import ALPHA_FAMILY, SCREEN_P, judge_timed, screen

SEED = 20240607
FAMILY = 24

times = st.floats(0.1, 1e3)
windows = st.lists(st.lists(times, min_size=1, max_size=3), min_size=1, max_size=5)
families = st.integers(1, 100)


def spaced(sd: float, runs: int, center: float = 4.0) -> list[float]:
    """Return runs whose ln has exactly that standard deviation and centre."""
    steps = np.arange(runs) - (runs - 1) / 2
    scale = sd / steps.std(ddof=1) if runs > 1 else 0.0
    return [center * math.exp(scale * step) for step in steps]


def one_session(ratio: float, sd: float, runs: int = 5) -> Cell:
    return make_cell(4.0 * ratio, spaced(sd, runs))


def single_runs(ratio: float, sd: float, sessions: int) -> Cell:
    return make_cell(4.0 * ratio, *([value] for value in spaced(sd, sessions)))


class TestReach:
    """Data that reach each outcome."""

    @pytest.mark.parametrize(("ratio", "outcome"), [(1.35, Outcome.REGRESSED), (0.74, Outcome.IMPROVED)])
    def test_a_single_run_decides_a_big_change(self, ratio: float, outcome: Outcome) -> None:
        """A baseline of one run, the smallest, detects changes of a third among 24 cells."""
        assert judge(make_cell(4.0 * ratio, [4.0]), family_size=FAMILY).outcome is outcome

    @pytest.mark.parametrize("family_size", [1, 8, FAMILY])
    @pytest.mark.parametrize("sd", [0.0, 0.01, 0.03, 0.05])
    def test_five_runs_of_one_session_find_half_as_slow_again(self, sd: float, family_size: int) -> None:
        """x1.5 regresses against one session of five runs whose ln has a standard deviation of up to 5 %."""
        assert judge(one_session(1.5, sd), family_size=family_size).outcome is Outcome.REGRESSED

    @pytest.mark.parametrize("family_size", [1, 8, FAMILY])
    def test_at_8_percent_noise_the_other_cells_help(self, family_size: int) -> None:
        """x1.5 at 8 % noise also regresses if the noise is known from the metric's other cells."""
        prior = prior_of([one_session(1.0, sd) for sd in (0.06, 0.07, 0.08, 0.08, 0.08, 0.09, 0.10)])
        assert judge(one_session(1.5, 0.08), prior=prior, family_size=family_size).outcome is Outcome.REGRESSED

    def test_at_8_percent_noise_two_fresh_runs_help(self) -> None:
        """Without other cells it needs two confirmations; without these it is inconclusive, never unchanged."""
        cell = one_session(1.5, 0.08)
        assert judge(cell, family_size=FAMILY).outcome is Outcome.INCONCLUSIVE
        assert judge(cell, family_size=FAMILY, confirmations=[6.0, 6.0]).outcome is Outcome.REGRESSED

    @pytest.mark.parametrize(("sessions", "sd", "family_size"), [(9, 0.005, 1), (10, 0.006, 1), (10, 0.004, FAMILY)])
    def test_unchanged_without_other_cells(self, sessions: int, sd: float, family_size: int) -> None:
        """With the assumed prior, `unchanged` needs nine sessions that spread by half a per cent."""
        assert judge(single_runs(1.0, sd, sessions), family_size=family_size).outcome is Outcome.UNCHANGED

    @pytest.mark.parametrize("sessions", range(1, 9))
    def test_unchanged_needs_nine_sessions(self, sessions: int) -> None:
        """With eight sessions or fewer, even equal runs are inconclusive under the assumed prior."""
        verdict = judge(single_runs(1.0, 0.0, sessions))
        assert verdict.outcome is Outcome.INCONCLUSIVE
        assert f"{sessions} session" in verdict.reason

    def test_unchanged_with_other_cells(self) -> None:
        """Three sessions suffice if other cells show that sessions agree."""
        prior = prior_of([single_runs(1.0, sd, 3) for sd in (0.003, 0.004, 0.004, 0.005, 0.005, 0.006)])
        assert judge(single_runs(1.0, 0.005, 3), prior=prior).outcome is Outcome.UNCHANGED

    def test_noise_is_inconclusive(self) -> None:
        """Ten sessions that spread by 3 % cannot rule out a change of 5 %, and report their MDE."""
        verdict = judge(single_runs(1.0, 0.03, 10))
        assert verdict.outcome is Outcome.INCONCLUSIVE
        assert verdict.mde is not None
        assert verdict.mde > 0.1
        assert "this baseline finds" in verdict.reason
        assert "10 sessions" in verdict.reason

    def test_flagged_is_not_yet_regressed(self) -> None:
        """Between the screen's level and the family's, a cell is flagged for fresh runs and does not fail."""
        verdict = judge(one_session(1.3, 0.02), family_size=1000)
        assert (verdict.outcome, verdict.flagged, verdict.fails) == (Outcome.INCONCLUSIVE, True, False)
        assert "flagged by the screen, not confirmed" in verdict.reason

    def test_a_tolerated_change_is_not_flagged(self) -> None:
        """A significant change within the margin is not flagged."""
        cell = single_runs(1.08, 0.003, 10)
        assert judge(cell).flagged
        tolerant = judge(replace(cell, limit=replace(cell.limit, tolerate=0.1, catch=0.15)))
        assert (tolerant.outcome, tolerant.flagged) == (Outcome.UNCHANGED, False)

    def test_interval_across_the_limit_is_inconclusive(self) -> None:
        """Even a good baseline does not call an improvement of 5 % unchanged."""
        verdict = judge(single_runs(0.9635, 0.006, 10))
        assert verdict.outcome is Outcome.INCONCLUSIVE
        assert "cannot be ruled out" in verdict.reason


class TestFloor:
    """The absolute floor below which no change is a regression."""

    def test_change_within_the_floor_is_unchanged(self) -> None:
        """x1.5 of 20 us is a change of 10 us, below TPOT's floor of 50."""
        window = [[0.02]] * 10
        assert judge(make_cell(0.03, *window)).outcome is Outcome.UNCHANGED
        assert judge(make_cell(0.03, *window, floor=0.0)).outcome is Outcome.REGRESSED

    def test_change_within_the_floor_is_no_improvement(self) -> None:
        """The floor applies in both directions."""
        window = [[0.03]] * 10
        assert judge(make_cell(0.02, *window)).outcome is Outcome.UNCHANGED
        assert judge(make_cell(0.02, *window, floor=0.0)).outcome is Outcome.IMPROVED

    @pytest.mark.parametrize(("metric", "limit"), [("tpot_ms", 1.5), ("decode_tokens_per_s", 0.5)])
    def test_limit_ratio_holds_the_wider_of_margin_and_floor(self, metric: str, limit: float) -> None:
        """The printed limit is the one that applies."""
        assert judge(make_cell(4.0, [4.0], metric=metric, floor=2.0)).limit_ratio == pytest.approx(limit)
        narrow = judge(make_cell(4.0, [4.0], metric=metric, floor=0.0)).limit_ratio
        assert narrow == pytest.approx(1.02 if metric == "tpot_ms" else 1 / 1.02)


class TestInvariance:
    """Transformations that do not change the result."""

    @given(windows, times, st.integers(-20, 20))
    def test_units(self, window: list[list[float]], value: float, power: int) -> None:
        """Values and floor in another unit give the same statistics."""
        scale = 2.0**power
        cell = make_cell(value, *window)
        scaled = make_cell(value * scale, *([v * scale for v in s] for s in window), floor=cell.limit.floor * scale)
        a, b = screen(cell), screen(scaled)
        assert (a.d, a.se, a.df) == pytest.approx((b.d, b.se, b.df), rel=1e-6, abs=1e-9)
        assert (a.interval.low, a.interval.high, a.mde) == pytest.approx(
            (b.interval.low, b.interval.high, b.mde), rel=1e-6
        )

    @given(windows, times, families, st.randoms(use_true_random=False))
    def test_order(self, window: list[list[float]], value: float, family_size: int, random: Random) -> None:
        """The window's order does not matter, bitwise."""
        shuffled = [random.sample(session, len(session)) for session in random.sample(window, len(window))]
        verdict, other = (judge(make_cell(value, *w), family_size=family_size) for w in (window, shuffled))
        assert replace(verdict, cell=other.cell) == other

    @given(st.lists(times, min_size=1, max_size=6), st.lists(st.integers(1, 4), min_size=6, max_size=6), times)
    def test_unequal_runs_of_equal_mean(self, means: list[float], repeats: list[int], value: float) -> None:
        """A session with more runs and the same mean has the same weight."""
        prior = Prior(variance=0.03**2, df=8.0)  # no assumed noise, which more runs would replace
        once = screen(make_cell(value, *([mean] for mean in means)), prior=prior)
        often = screen(make_cell(value, *([m] * n for m, n in zip(means, repeats, strict=False))), prior=prior)
        assert (once.d, once.se, once.df, once.baseline) == pytest.approx(
            (often.d, often.se, often.df, often.baseline), rel=1e-6, abs=1e-9
        )

    @given(windows, times, families)
    def test_direction(self, window: list[list[float]], value: float, family_size: int) -> None:
        """A rate is judged like its reciprocal, a time."""
        rate = make_cell(1 / value, *([1 / v for v in s] for s in window), metric="decode_tokens_per_s", floor=0.0)
        time = make_cell(value, *window, floor=0.0)
        a, b = (screen(cell, family_size=family_size) for cell in (rate, time))
        assert (a.d, a.se, a.p_margin, a.p_improved, a.mde) == pytest.approx(
            (b.d, b.se, b.p_margin, b.p_improved, b.mde), rel=1e-6, abs=1e-9
        )
        assert a.interval.low * b.interval.high == pytest.approx(1)

    def test_larger_is_better(self) -> None:
        """Half the rate is a regression and twice the rate an improvement."""
        outcomes = [judge(make_cell(rate, [100.0] * 5, metric="decode_tokens_per_s")).outcome for rate in (50.0, 200.0)]
        assert outcomes == [Outcome.REGRESSED, Outcome.IMPROVED]


ORDER = {Outcome.IMPROVED: 0, Outcome.UNCHANGED: 1, Outcome.INCONCLUSIVE: 1, Outcome.REGRESSED: 2}


class TestMonotony:
    """A larger change never gets a weaker verdict."""

    @given(windows, st.lists(times, min_size=2, max_size=5), families)
    def test_in_the_effect(self, window: list[list[float]], values: list[float], family_size: int) -> None:
        """A larger time never changes the verdict from regressed to unchanged, or from unchanged to improved."""
        ranks = [ORDER[judge(make_cell(v, *window), family_size=family_size).outcome] for v in sorted(values)]
        assert ranks == sorted(ranks)

    @given(windows, times, families)
    def test_in_the_family(self, window: list[list[float]], value: float, family_size: int) -> None:
        """A regression in a larger family is one in a smaller family."""
        cell = make_cell(value, *window)
        alone, among = (judge(cell, family_size=size).outcome is Outcome.REGRESSED for size in (1, family_size))
        assert alone >= among


class TestBadInput:
    """Invalid input to the screen, without the checks of `judge`."""

    def test_nothing_to_compare_with_is_no_verdict(self) -> None:
        """An empty window is the caller's error."""
        with pytest.raises(ValueError):  # noqa: PT011  # raised by the mean of an empty list
            judge_timed(make_cell(4.0))

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    @pytest.mark.parametrize("where", ["value", "window", "confirmation"])
    def test_what_is_no_number_never_moves(self, value: float, where: str) -> None:
        """NaN and infinity are invalid anywhere, never a regression or an improvement."""
        values = {"value": 4.0, "window": 4.0, "confirmation": 4.0} | {where: value}
        cell = make_cell(values["value"], [4.0] * 9 + [values["window"]])
        assert judge(cell, confirmations=[values["confirmation"]]).outcome is Outcome.INVALID


class TestSpread:
    """Estimates of the spread."""

    @given(times, st.integers(1, 10), st.integers(1, 3), families)
    def test_identical_runs_never_move(self, value: float, sessions: int, runs: int, family_size: int) -> None:
        """A run that equals its whole baseline neither regresses nor improves."""
        verdict = judge(make_cell(value, *([[value] * runs] * sessions)), family_size=family_size)
        assert verdict.outcome in {Outcome.UNCHANGED, Outcome.INCONCLUSIVE}
        assert verdict.ratio == pytest.approx(1)

    @pytest.mark.parametrize("ratio", [1.0, 1.02, 1.021, 10.0])
    def test_zero_variance_is_floored(self, ratio: float) -> None:
        """Equal runs get the floor as spread and a finite p-value, so a change at the margin is no regression."""
        prior = Prior(variance=0.0, df=1.0)
        found = screen(single_runs(ratio, 0.0, 10), prior=prior)
        assert found.se == pytest.approx(SD_FLOOR * math.sqrt(1.1))
        assert 0 < found.p_margin <= 1
        assert judge(single_runs(min(ratio, 1.02), 0.0, 10), prior=prior).outcome is not Outcome.REGRESSED

    def test_noise_of_few_runs_is_not_believed(self) -> None:
        """Large noise known from few runs leaves few degrees of freedom, not those of the sessions."""
        assert screen(make_cell(4.0, spaced(0.3, 2))).df < 5
        assert screen(make_cell(4.0, spaced(0.3, 20))).df > 15
        assert screen(make_cell(4.0, spaced(0.3, 2)), prior=Prior(variance=0.03**2, df=8.0)).df < 2

    def test_more_candidates_sharpen(self) -> None:
        """More candidate runs reduce the standard error down to the drift between sessions."""
        cell = one_session(1.2, 0.08)
        errors = [screen(cell, candidates=[4.8] * n).se for n in (1, 2, 3, 5)]
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] == pytest.approx(math.sqrt(2 * (0.03**2 + 0.08**2 / 5)))

    def test_moderation(self) -> None:
        """An estimated prior and the cell's own sessions are weighted by their degrees of freedom."""
        found = screen(single_runs(1.0, 0.02, 5), prior=Prior(variance=0.01**2, df=8.0))
        assert found.df == 12
        assert found.se == pytest.approx(math.sqrt((8 * 0.01**2 + 4 * 0.02**2) / 12 * 1.2))

    def test_mde_is_found_nine_times_in_ten(self) -> None:
        """In simulation, a slowdown of the stated MDE is called a regression about 90 % of the time."""
        rng = np.random.default_rng(SEED)
        prior = Prior(variance=0.01**2, df=30.0)
        mde = screen(single_runs(1.0, 0.01, 10), prior=prior, family_size=FAMILY).mde
        logs = rng.normal(0, 0.01, (1500, 11))
        logs[:, -1] += math.log1p(mde)
        found = [regressed(row, prior=prior, family_size=FAMILY) for row in np.exp(logs)]
        assert 0.85 < np.mean(found) < 0.95


def regressed(
    row: NDArray[np.float64], *, sessions: int = 10, prior: Prior = DEFAULT_PRIOR, family_size: int = 1
) -> bool:
    """Return whether the last value regresses against the others, spread evenly over that many sessions."""
    *window, value = (4 * row).tolist()
    cell = make_cell(value, *np.reshape(window, (sessions, -1)).tolist(), floor=0.0)
    return judge_timed(cell, family_size=family_size, prior=prior).outcome is Outcome.REGRESSED


class TestFalseAlarms:
    """Monte Carlo simulation: the false alarm rate of one cell at the loosest level, a family of one."""

    def test_ten_sessions(self) -> None:
        """Ten sessions that spread by 1 %: below 0.5 %."""
        rows = np.exp(np.random.default_rng(SEED).normal(0, 0.01, (3000, 11)))
        assert np.mean([regressed(row) for row in rows]) < 0.005

    @pytest.mark.parametrize("runs", [1, 2, 5])
    def test_one_session(self, runs: int) -> None:
        """One session of runs that spread by 3 %, with 3 % between sessions: below 1 %."""
        rng = np.random.default_rng(SEED)
        logs = rng.normal(0, 0.03, (2000, runs + 1))
        logs[:, -1] += rng.normal(0, 0.03 * math.sqrt(2), 2000)
        assert np.mean([regressed(row, sessions=1) for row in np.exp(logs)]) < 0.01


def test_levels() -> None:
    """The constants match the documentation."""
    assert (ALPHA_FAMILY, SCREEN_P) == (0.01, 0.002)
