"""Student's t distribution: tail probabilities, quantiles and confidence intervals of a ratio.

``scipy.special`` has everything needed and imports in a fraction of the time of ``scipy.stats``.
"""

from __future__ import annotations

import math

from scipy.special import stdtr, stdtrit

from pytest_llmperf.stats.interval import Interval

SD_FLOOR = 0.002
"""Minimum standard deviation of ln(value).

A smaller one, such as that of five equal runs, is chance or a coarse clock, and t must stay finite.
"""

LEVEL = 0.95
"""Confidence level of every interval shown."""

_LARGEST_LOG = 700.0  # exp of more overflows a double


def upper_tail(t: float, df: float) -> float:
    """Return P(T >= ``t``)."""
    return float(stdtr(df, -t))


def quantile(alpha: float, df: float) -> float:
    """Return the t that is exceeded with probability ``alpha``."""
    return -float(stdtrit(df, alpha))


def half_width(se: float, df: float) -> float:
    """Return the half-width of the two-sided confidence interval at `LEVEL` for a standard error ``se``."""
    return quantile((1 - LEVEL) / 2, df) * se


def ratio_interval(log_ratio: float, se: float, df: float) -> Interval:
    """Return the two-sided confidence interval of exp(``log_ratio``) at `LEVEL`."""
    half = half_width(se, df)
    return Interval(low=bounded_exp(log_ratio - half), high=bounded_exp(log_ratio + half), level=LEVEL)


def bounded_exp(x: float) -> float:
    """Return exp(``x``), limited so that it never overflows."""
    return math.exp(min(x, _LARGEST_LOG))
