"""Exact binomial confidence bounds by Clopper and Pearson (1934)."""

from __future__ import annotations

from scipy.special import betaincinv

from pytest_llmperf.stats.student_t import LEVEL


def lower_bound(successes: int, trials: int, level: float = LEVEL) -> float:
    """Return the lower one-sided confidence bound of a rate at ``level``; 0 without trials."""
    return float(betaincinv(successes, trials - successes + 1, 1 - level)) if successes else 0.0


def upper_bound(successes: int, trials: int, level: float = LEVEL) -> float:
    """Return the upper one-sided confidence bound of a rate at ``level``; 1 without trials."""
    return float(betaincinv(successes + 1, trials - successes, level)) if successes < trials else 1.0


def rate_interval(successes: int, trials: int) -> tuple[float, float]:
    """Return the two-sided confidence interval of a rate at `LEVEL`."""
    each = (1 + LEVEL) / 2
    return lower_bound(successes, trials, each), upper_bound(successes, trials, each)
