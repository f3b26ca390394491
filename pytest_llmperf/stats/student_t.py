"""Student's t in logarithms: tails, quantiles and the interval of a ratio.

``scipy.special`` holds all that is needed and imports in a fraction of the time of ``scipy.stats``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.special import stdtr, stdtrit

SD_FLOOR = 0.002
"""No spread is believed to be smaller: five equal runs are luck or a coarse clock, and t must stay finite."""

LEVEL = 0.95
"""The confidence of every interval that is shown."""

_LARGEST_LOG = 700.0  # exp of more overflows a double


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A two-sided confidence interval of the ratio now / baseline."""

    low: float
    high: float
    level: float


def upper_tail(t: float, df: float) -> float:
    """P(T >= ``t``)."""
    return float(stdtr(df, -t))


def quantile(alpha: float, df: float) -> float:
    """The t that is exceeded with probability ``alpha``."""
    return -float(stdtrit(df, alpha))


def half_width(se: float, df: float) -> float:
    """Half the width of the two-sided interval at `LEVEL` around an estimate with that standard error."""
    return quantile((1 - LEVEL) / 2, df) * se


def ratio_interval(log_ratio: float, se: float, df: float) -> Interval:
    """The two-sided interval of exp(``log_ratio``) at `LEVEL`."""
    half = half_width(se, df)
    return Interval(low=bounded_exp(log_ratio - half), high=bounded_exp(log_ratio + half), level=LEVEL)


def bounded_exp(x: float) -> float:
    """exp(``x``), never an overflow."""
    return math.exp(min(x, _LARGEST_LOG))
