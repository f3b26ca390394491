"""Screen: compare one run with the stored baseline by a moderated t test.

The test compares session means, in logarithms, with a margin. It reports its minimum detectable effect, and does not
call a cell unchanged if that is larger than the limit's ``catch``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

from pytest_llmperf.metrics import Better, Kind
from pytest_llmperf.stats.interval import Interval
from pytest_llmperf.stats.student_t import SD_FLOOR, bounded_exp, half_width, quantile, ratio_interval, upper_tail
from pytest_llmperf.verdict.model import Cell, Outcome, Verdict, evidence, number, percent
from pytest_llmperf.verdict.prior import DEFAULT_PRIOR, Prior
from pytest_llmperf.verdict.window_stats import History, oriented

ALPHA_FAMILY = 0.01
"""False alarm rate of a run of unchanged code, over all its cells."""

SCREEN_P = 0.002
"""One-sided p-value of no change, below which a cell is flagged."""

POWER = 0.9


@dataclass(frozen=True, kw_only=True)
class Screen:
    """Result of the screen.

    ``d`` is the change for the worse in ln(value), ``se`` its standard error on ``df`` degrees of freedom. The p-values
    are one-sided: ``p_zero`` of no change, ``p_margin`` of a change for the worse within the margin, ``p_improved`` of
    a change for the better within it. ``baseline`` and ``now`` are geometric means in the metric's unit, ``interval``
    is the confidence interval of now / baseline, and ``mde`` is the relative minimum detectable effect. Fresh runs
    confirm or clear ``flagged`` cells.
    """

    d: float
    se: float
    df: float
    p_zero: float
    p_margin: float
    p_improved: float
    baseline: float
    now: float
    interval: Interval
    mde: float
    flagged: bool


def screen(
    cell: Cell, *, prior: Prior = DEFAULT_PRIOR, candidates: Sequence[float] = (), family_size: int = 1
) -> Screen:
    """Compare ``candidates`` (values of one session; by default the cell's own) with the cell's window.

    ``family_size`` is the number of cells that could fail this run; it affects the minimum detectable effect.

    Raises:
        ValueError: the window is empty, or a value has no logarithm.
        TypeError: a value is not a number.
    """
    history, sign = History.of(cell), cell.metric.better.sign
    ys = [oriented(cell.metric, value) for value in candidates or [number(cell.value)]]
    y, margin = fmean(ys), math.log1p(cell.limit.tolerate)
    d = y - history.center
    se, df = _standard_error(history, len(ys), prior)
    p_zero = upper_tail(d / se, df)
    baseline, now = bounded_exp(sign * history.center), bounded_exp(sign * y)
    return Screen(
        d=d,
        se=se,
        df=df,
        p_zero=p_zero,
        p_margin=upper_tail((d - margin) / se, df),
        p_improved=upper_tail((-d - margin) / se, df),
        baseline=baseline,
        now=now,
        interval=ratio_interval(sign * d, se, df),
        mde=_minimum_detectable_effect(margin, se, df, ALPHA_FAMILY / family_size),
        flagged=p_zero < SCREEN_P and d > margin and abs(now - baseline) > cell.limit.floor,
    )


def judge_timed(
    cell: Cell, *, family_size: int = 1, prior: Prior = DEFAULT_PRIOR, confirmations: Sequence[float] = ()
) -> Verdict:
    """Return the screen's verdict on the cell's value and its ``confirmations``, fresh runs of the same session.

    Cells are judged as their tests end, so each is held to the first and strictest step of Holm's procedure: p <=
    `ALPHA_FAMILY` / ``family_size``.

    Raises:
        ValueError: the window is empty.
        TypeError: a value is not a number.
    """
    candidates = [number(cell.value), *confirmations]
    if min([*candidates, *cell.figures]) <= 0:
        return _without_ratio(cell)
    found = screen(cell, prior=prior, candidates=candidates, family_size=family_size)
    outcome, reason = _decide(cell, found, ALPHA_FAMILY / family_size)
    if outcome is Outcome.REGRESSED and confirmations and not _agree(cell, found, confirmations):
        outcome, reason = Outcome.INCONCLUSIVE, "the first run was slower, the fresh runs after it were not"
    return Verdict(
        cell=cell,
        outcome=outcome,
        kind=Kind.TIMED,
        reason=reason,
        baseline=found.baseline,
        ratio=bounded_exp(cell.metric.better.sign * found.d),
        interval=found.interval,
        limit_ratio=limit_ratio(cell, found.baseline),
        mde=found.mde,
        p_value=found.p_improved if outcome is Outcome.IMPROVED else found.p_margin,
        flagged=found.flagged,
        runs=len(cell.window),
        sessions=cell.sessions,
        candidates=candidates if confirmations else (),
    )


def _agree(cell: Cell, found: Screen, confirmations: Sequence[float]) -> bool:
    """Return whether the fresh runs alone exceed the margin, so that an outlying first run cannot decide."""
    sign, baseline = cell.metric.better.sign, found.baseline
    changes = [sign * math.log(value / baseline) for value in confirmations]
    return median(changes) > math.log1p(cell.limit.tolerate)


def _without_ratio(cell: Cell) -> Verdict:
    return Verdict(
        cell=cell,
        outcome=Outcome.INCONCLUSIVE,
        kind=Kind.TIMED,
        reason="varies between identical runs, and one of them is 0: no ratio",
        runs=len(cell.window),
        sessions=cell.sessions,
    )


def _decide(cell: Cell, found: Screen, alpha: float) -> tuple[Outcome, str]:
    limit, basis = cell.limit, evidence(len(cell.window), cell.sessions)
    within_floor = abs(found.now - found.baseline) <= limit.floor
    if found.flagged and found.p_margin <= alpha:
        return Outcome.REGRESSED, ""
    if found.flagged:
        return Outcome.INCONCLUSIVE, (
            f"flagged by the screen, not confirmed: p={found.p_margin:.1g}, needs {alpha:.1g} ({basis})"
        )
    if found.p_improved <= alpha and not within_floor:
        return Outcome.IMPROVED, ""
    if found.mde > limit.catch:
        return Outcome.INCONCLUSIVE, f"this baseline finds {percent(found.mde)} or more ({basis})"
    if within_floor or _inside(found, limit.catch):
        return Outcome.UNCHANGED, ""
    return Outcome.INCONCLUSIVE, f"a change of {percent(limit.catch)} cannot be ruled out ({basis})"


def _standard_error(history: History, candidates: int, prior: Prior) -> tuple[float, float]:
    """Return the standard error of d and its degrees of freedom.

    Var(d) is the variance of the candidate's session mean plus that of the baseline's mean over sessions. If the
    candidate's session has fewer runs than the baseline's, its additional run-to-run noise is added. The two parts are
    estimated independently, so their degrees of freedom combine by Welch and Satterthwaite: noise estimated from two
    runs must not count as well known.
    """
    left = prior.beside(history.between)
    means = 1 + 1 / history.sessions
    between = history.between.pooled(left)
    noise = history.within.pooled(prior.noise.beside(history.within)) if prior.noise else history.within
    noise_share = max(0.0, 1 / candidates - 1 / history.runs_per_session)
    if prior.assumed:  # it covers drift alone, so add the noise of a session mean to its share
        noise_share += means * left.df / between.df / history.runs_per_session
    parts = [
        (means * max(between.value, SD_FLOOR**2), between.df),
        (noise_share * noise.value, noise.df),
    ]
    total = math.fsum(part for part, _ in parts)
    return math.sqrt(total), total**2 / math.fsum(part**2 / df for part, df in parts if df)


def _minimum_detectable_effect(margin: float, se: float, df: float, alpha: float) -> float:
    """Return the relative change for the worse that is called a regression with probability `POWER`.

    The change must pass both tests, of no change and of the margin. The absolute floor, which the user sets, is
    ignored.
    """
    detectable = max(margin + quantile(alpha, df) * se, quantile(SCREEN_P, df) * se)
    return bounded_exp(detectable + quantile(1 - POWER, df) * se) - 1


def _inside(found: Screen, catch: float) -> bool:
    """Return whether the confidence interval excludes changes of ``catch`` in both directions."""
    return abs(found.d) + half_width(found.se, found.df) < math.log1p(catch)


def limit_ratio(cell: Cell, baseline: float) -> float:
    """Return the ratio to the baseline beyond which a change is a regression: the margin, or a wider floor."""
    limit = cell.limit
    if cell.metric.better is Better.SMALLER:
        return 1 + max(limit.tolerate, limit.floor / baseline)
    return max(0.0, min(1 / (1 + limit.tolerate), 1 - limit.floor / baseline))
