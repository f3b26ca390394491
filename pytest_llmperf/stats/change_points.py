"""Change point detection: find the points at which the level of a time series shifted.

A gate compares one run with the baseline and passes changes below its limit. Only the history shows how many such
changes add up. The segmentation is PELT (Killick et al. 2012) by ruptures, which is exact and needs only numpy and
scipy, both already dependencies. Apache Otava would also work, but it is a command with its own configuration and data
sources.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import median

from pytest_llmperf.errors import MissingDependency
from pytest_llmperf.stats.student_t import SD_FLOOR

FEWEST_POINTS = 6
"""Minimum number of points; with fewer, noise cannot be told from a step."""

SHORTEST_LEVEL = 2
"""Minimum number of points in a level; a single point may be an outlier."""

SPIKE = 4.0
"""Points further than this many standard deviations beyond both neighbours are clipped.

Otherwise a spike and one neighbour would form a level.
"""

PENALTY = 5.0
"""Cost of a change point, in units of noise variance times ln(points).

The modified BIC (Zhang and Siegmund 2007) needs about 3 if the noise is known. Here the noise is estimated from a few
differences. With 5, pure noise shows a change in at most one of ten series of 6 points and one of twenty series of 20
points, and nine of ten steps of five times the noise are found.
"""

_MAD_TO_SD = 1.4826


def change_points(logs: Sequence[float]) -> list[int]:
    """Return the index of the first point of each new level, for a series of ln(value) in time order.

    Raises:
        MissingDependency: ruptures is not installed.
    """
    if len(logs) < FEWEST_POINTS or min(logs) == max(logs):
        return []
    try:
        import ruptures
    except ImportError as error:
        raise MissingDependency("ruptures", extra="history", purpose="finding change points") from error
    import numpy as np

    sd = noise(logs)
    signal = np.asarray(_without_spikes(logs, SPIKE * sd)).reshape(-1, 1)
    penalty = PENALTY * math.log(len(logs)) * sd**2
    ends = ruptures.Pelt(model="l2", min_size=SHORTEST_LEVEL, jump=1).fit(signal).predict(pen=penalty)
    return [int(end) for end in ends[:-1]]


def noise(logs: Sequence[float]) -> float:
    """Estimate the standard deviation around the levels from first differences.

    Most differences contain no step, so their median is robust to steps. The result is at least `SD_FLOOR`, since equal
    values come from a coarse clock or a count.
    """
    steps = [abs(after - before) for before, after in pairwise(logs)]
    return max(_MAD_TO_SD * median(steps) / math.sqrt(2), SD_FLOOR)


def _without_spikes(logs: Sequence[float], reach: float) -> list[float]:
    around = [logs[1], *logs, logs[-2]]
    return [
        min(max(y, min(left, right) - reach), max(left, right) + reach)
        for left, y, right in zip(around, logs, around[2:], strict=False)
    ]
