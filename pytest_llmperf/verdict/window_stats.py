"""Statistics of a cell's baseline window: mean and variance of ln(value), within and between sessions.

Times vary in proportion, so the statistics are of logarithms, oriented so that more is worse. Runs of one session are
correlated, so each session counts once, however many runs it has.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

from pytest_llmperf.metrics import Metric
from pytest_llmperf.stats.moderated_variance import UNKNOWN, Variance
from pytest_llmperf.verdict.model import Cell, number


@dataclass(frozen=True, kw_only=True)
class History:
    """Centre and variances of a window.

    ``between`` is the variance of session means and ``within`` the variance of runs within a session.
    ``runs_per_session`` is the harmonic mean, since the variance of a session mean is proportional to 1 / runs.
    """

    center: float
    runs: int
    sessions: int
    runs_per_session: float
    between: Variance
    within: Variance

    @classmethod
    def of(cls, cell: Cell) -> History:
        """Compute the statistics of a cell's window.

        Raises:
            ValueError: the window is empty, or a value has no logarithm.
            TypeError: a value is not a number.
        """
        sessions = _by_session(cell)
        means = [fmean(session) for session in sessions]
        counts = [len(session) for session in sessions]
        deviations = [y - mean for session, mean in zip(sessions, means, strict=True) for y in session]
        center = fmean(means)
        return cls(
            center=center,
            runs=sum(counts),
            sessions=len(means),
            runs_per_session=len(counts) / math.fsum(1 / count for count in counts),
            between=_mean_square((mean - center for mean in means), len(means) - 1),
            within=_mean_square(deviations, sum(counts) - len(counts)),
        )


def oriented(metric: Metric, value: float) -> float:
    """Return ln(value), or -ln(value) if larger is better, so that more is worse."""
    return metric.better.sign * math.log(value)


def _by_session(cell: Cell) -> list[list[float]]:
    sessions: defaultdict[str, list[float]] = defaultdict(list)
    for sample in cell.window:
        sessions[sample.session_id].append(oriented(cell.metric, number(sample.value)))
    return list(sessions.values())


def _mean_square(deviations: Iterable[float], df: int) -> Variance:
    # fsum makes the result independent of the order of the runs.
    return Variance(math.fsum(deviation**2 for deviation in deviations) / df, df) if df else UNKNOWN
