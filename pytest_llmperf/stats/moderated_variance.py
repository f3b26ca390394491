"""Moderated variance: what the variances of many cells have in common adds degrees of freedom to each of them.

A cell has few figures, but there are many cells. The typical variance is estimated from all of them, and pooled with
each cell's own (Smyth 2004, https://doi.org/10.2202/1544-6115.1027).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import fmean
from typing import NamedTuple

from scipy.special import digamma, polygamma

from pytest_llmperf.stats.student_t import SD_FLOOR

DF_CAP = 30.0
"""Maximum degrees of freedom of the typical variance, since cells are similar, not identical."""

FEWEST_CELLS = 5
FEWEST_DF = 2


class Variance(NamedTuple):
    """An estimated variance of ln(value) and its degrees of freedom; both 0 if unknown."""

    value: float
    df: float

    @property
    def sd(self) -> float:
        """The standard deviation, at least `SD_FLOOR`."""
        return max(math.sqrt(self.value), SD_FLOOR)

    def pooled(self, other: Variance) -> Variance:
        """Return the pooled variance, each estimate weighted by its degrees of freedom."""
        df = self.df + other.df
        return Variance((self.df * self.value + other.df * other.value) / df, df) if df else UNKNOWN


UNKNOWN = Variance(0.0, 0.0)


def typical_variance(variances: Iterable[tuple[float, float]]) -> Variance | None:
    """Fit s² ~ s0² F(df, df0) to pairs (variance, degrees of freedom), by the method of moments on log s².

    Source: Smyth 2004, section 6.2 (``fitFDist`` of limma).

    Returns:
        s0² and df0; ``None`` if fewer than five variances have two degrees of freedom or more.
    """
    usable = [(max(value, SD_FLOOR**2), df) for value, df in variances if df >= FEWEST_DF]
    if len(usable) < FEWEST_CELLS:
        return None
    logs = [math.log(value) - _log_bias(df) for value, df in usable]
    mean = fmean(logs)
    spread = math.fsum((log - mean) ** 2 for log in logs) / (len(logs) - 1)
    excess = spread - fmean(_trigamma(df / 2) for _, df in usable)
    df0 = min(DF_CAP, 2 * _inverse_trigamma(excess)) if excess > 0 else DF_CAP
    return Variance(math.exp(mean + _log_bias(df0)), df0)


def _log_bias(df: float) -> float:
    """Return E[ln(s²/σ²)] of a sample variance."""
    return float(digamma(df / 2)) - math.log(df / 2)


def _trigamma(x: float) -> float:
    return float(polygamma(1, x))


def _inverse_trigamma(x: float) -> float:
    """Return the y > 0 with trigamma(y) = x > 0, by Newton's method on 1/trigamma: Smyth 2004, appendix."""
    y = 0.5 + 1 / x
    for _ in range(50):
        trigamma = _trigamma(y)
        step = trigamma * (1 - trigamma / x) / float(polygamma(2, y))
        y += step
        if -step < 1e-8 * y:
            break
    return y
