"""Prior variance of a metric: estimate the typical spread from all of a baseline's cells.

A cell has few sessions, but a baseline has many cells. The typical variance of a metric adds degrees of freedom to each
of its cells. The method is the moderated variance of Smyth 2004 (https://doi.org/10.2202/1544-6115.1027).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from scipy.special import digamma, polygamma

from pytest_llmperf.stats.student_t import SD_FLOOR
from pytest_llmperf.verdict.model import Cell
from pytest_llmperf.verdict.window_stats import History, Variance

DF_CAP = 30.0
"""Maximum degrees of freedom of a prior, since the cells of one metric are similar, not identical."""

FEWEST_CELLS = 5
FEWEST_DF = 2


@dataclass(frozen=True, kw_only=True)
class Prior:
    """The typical variance of ln(session mean) of a metric, with ``df`` degrees of freedom.

    ``noise`` is the same for ln(value) of one run within a session. An ``assumed`` prior is a default, not estimated
    from a baseline, so the cell's own degrees of freedom replace it. The variance of session means then covers drift
    alone, and the noise is added to it.
    """

    variance: float
    df: float
    assumed: bool = False
    noise: Prior | None = None

    def beside(self, own: Variance) -> Variance:
        """Return the variance to pool with the cell's own; each own degree of freedom replaces an assumed one."""
        return Variance(self.variance, max(0.0, self.df - own.df) if self.assumed else self.df)


DEFAULT_NOISE = Prior(variance=0.03**2, df=4.0, assumed=True)
"""An assumption for a baseline of one or two runs; five runs in a session replace it entirely."""

# An assumption. The step time of one model, tracked on pinned machines, drifted between sessions by 4 to 6 % from
# lowest to highest, so 3 % is a generous standard deviation. The cell's own sessions replace it one by one;
# otherwise a window of 20 runs could never call a metric with a margin of a few per cent unchanged.
DEFAULT_PRIOR = Prior(variance=0.03**2, df=8.0, assumed=True, noise=DEFAULT_NOISE)


def prior_of(cells: Iterable[Cell]) -> Prior:
    """Estimate the prior of a metric from all its cells; cells with values that are not positive are skipped."""
    histories = [History.of(cell) for cell in cells if _has_logarithms(cell)]
    noise = _fit([history.within for history in histories]) or DEFAULT_NOISE
    return replace(fit_prior([history.between for history in histories]), noise=noise)


def _has_logarithms(cell: Cell) -> bool:
    values = [sample.value for sample in cell.window]
    return bool(values) and all(not isinstance(value, str) and 0 < value < math.inf for value in values)


def fit_prior(variances: Sequence[tuple[float, float]]) -> Prior:
    """Return the prior from (variance, degrees of freedom) of ln(session mean) across the cells of a metric.

    Returns `DEFAULT_PRIOR` if fewer than five cells have three sessions or more.
    """
    return _fit(variances) or DEFAULT_PRIOR


def _fit(variances: Sequence[tuple[float, float]]) -> Prior | None:
    """Fit by the method of moments on log s² for s² ~ s0² F(df, df0).

    Source: Smyth 2004, section 6.2 (``fitFDist`` of limma).
    """
    usable = [(max(value, SD_FLOOR**2), df) for value, df in variances if df >= FEWEST_DF]
    if len(usable) < FEWEST_CELLS:
        return None
    logs = [math.log(value) - _log_bias(df) for value, df in usable]
    mean = fmean(logs)
    spread = math.fsum((log - mean) ** 2 for log in logs) / (len(logs) - 1)
    excess = spread - fmean(_trigamma(df / 2) for _, df in usable)
    df0 = min(DF_CAP, 2 * _inverse_trigamma(excess)) if excess > 0 else DF_CAP
    return Prior(variance=math.exp(mean + _log_bias(df0)), df=df0)


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
