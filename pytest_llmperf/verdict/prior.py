"""Prior variance of a metric: estimate the typical spread from all of a baseline's cells.

A cell has few sessions, but a baseline has many cells: see `moderated_variance`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from pytest_llmperf.stats.moderated_variance import Variance, typical_variance
from pytest_llmperf.verdict.model import Cell
from pytest_llmperf.verdict.window_stats import History


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
    typical = typical_variance(variances)
    return typical and Prior(variance=typical.value, df=typical.df)
