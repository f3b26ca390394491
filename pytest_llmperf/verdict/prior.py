"""What is believed about a metric's spread before one cell is looked at.

A cell has few sessions, a baseline has many cells: the spread that is typical of a metric lends each of its cells
degrees of freedom. The method is the moderated variance of Smyth 2004 (https://doi.org/10.2202/1544-6115.1027).
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
"""No prior weighs more than this many sessions: cells of one metric are alike, not identical."""

FEWEST_CELLS = 5
FEWEST_DF = 2


@dataclass(frozen=True, kw_only=True)
class Prior:
    """The variance of ln(session mean) that is typical of a metric, worth ``df`` degrees of freedom.

    ``noise`` is the same for ln(value) of one run inside its session. An ``assumed`` prior was not learned from any
    baseline, so what the cell knows itself replaces it; that of the session means then holds their drift alone, and
    the noise comes on top of it.
    """

    variance: float
    df: float
    assumed: bool = False
    noise: Prior | None = None

    def beside(self, own: Variance) -> Variance:
        """What still counts beside the cell's own: each degree of freedom of that replaces one of an assumption."""
        return Variance(self.variance, max(0.0, self.df - own.df) if self.assumed else self.df)


DEFAULT_NOISE = Prior(variance=0.03**2, df=4.0, assumed=True)
"""An assumption, for a baseline of one or two runs: nobody who has three more runs in a session depends on it."""

# An assumption: where the step time of one model was tracked on pinned machines, sessions drifted by 4 to 6 % from
# lowest to highest, so 3 % is one standard deviation with room. Sessions of the cell itself replace it one by one;
# without that, no window of 20 runs could ever call a metric with a margin of a few per cent unchanged.
DEFAULT_PRIOR = Prior(variance=0.03**2, df=8.0, assumed=True, noise=DEFAULT_NOISE)


def prior_of(cells: Iterable[Cell]) -> Prior:
    """The prior of one metric from the baselines of all its cells; cells that have no logarithms are passed over."""
    histories = [History.of(cell) for cell in cells if _has_logarithms(cell)]
    noise = _fit([history.within for history in histories]) or DEFAULT_NOISE
    return replace(fit_prior([history.between for history in histories]), noise=noise)


def _has_logarithms(cell: Cell) -> bool:
    values = [sample.value for sample in cell.window]
    return bool(values) and all(not isinstance(value, str) and 0 < value < math.inf for value in values)


def fit_prior(variances: Sequence[tuple[float, float]]) -> Prior:
    """The prior from (variance, degrees of freedom) of ln(session mean) across the cells of one metric.

    Returns `DEFAULT_PRIOR` if fewer than five cells have three sessions or more.
    """
    return _fit(variances) or DEFAULT_PRIOR


def _fit(variances: Sequence[tuple[float, float]]) -> Prior | None:
    """Method of moments on log s² for s² ~ s0² F(df, df0): Smyth 2004, section 6.2 (``fitFDist`` of limma)."""
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
    """E[ln(s²/σ²)] of a sample variance."""
    return float(digamma(df / 2)) - math.log(df / 2)


def _trigamma(x: float) -> float:
    return float(polygamma(1, x))


def _inverse_trigamma(x: float) -> float:
    """The y > 0 with trigamma(y) = x > 0, by Newton's method on 1/trigamma: Smyth 2004, appendix."""
    y = 0.5 + 1 / x
    for _ in range(50):
        trigamma = _trigamma(y)
        step = trigamma * (1 - trigamma / x) / float(polygamma(2, y))
        y += step
        if -step < 1e-8 * y:
            break
    return y
