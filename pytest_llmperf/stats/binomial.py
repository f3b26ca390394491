"""How sure a count out of a number of trials is: exact bounds of Clopper and Pearson (1934)."""

from __future__ import annotations

from scipy.special import betaincinv

from pytest_llmperf.stats.student_t import LEVEL


def lower_bound(successes: int, trials: int, level: float = LEVEL) -> float:
    """The smallest rate that so many successes leave credible, one-sided at ``level``; 0 of no trials."""
    return float(betaincinv(successes, trials - successes + 1, 1 - level)) if successes else 0.0


def upper_bound(successes: int, trials: int, level: float = LEVEL) -> float:
    """The largest rate that so many successes leave credible, one-sided at ``level``; 1 of no trials."""
    return float(betaincinv(successes + 1, trials - successes, level)) if successes < trials else 1.0


def rate_interval(successes: int, trials: int) -> tuple[float, float]:
    """The two-sided interval of the rate at `LEVEL`."""
    each = (1 + LEVEL) / 2
    return lower_bound(successes, trials, each), upper_bound(successes, trials, each)
