"""Where the level of a series moved for good, found after the fact.

A gate compares one run with the past and lets pass what is below its limit; what ten such changes add up to is seen
only by looking back. The segmentation is PELT (Killick et al. 2012) by ruptures: exact, and made of numpy and scipy,
which are here anyway. Apache Otava would do as well, but is a command with a configuration and data sources of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import median

from pytest_llmperf.errors import MissingDependency
from pytest_llmperf.stats.student_t import SD_FLOOR

FEWEST_POINTS = 6
"""Below, the noise cannot be told from a step."""

SHORTEST_LEVEL = 2
"""One point alone is a bad day, not a level."""

SPIKE = 4.0
"""How many standard deviations a point may lie beyond both of its neighbours, or it would make a level with one."""

PENALTY = 5.0
"""Cost of a change point, in units of noise variance times ln(points).

The modified BIC (Zhang and Siegmund 2007) asks for about 3 where the noise is known. Here it is estimated from a few
differences; with 5, pure noise shows a change in at most one series of ten with 6 points, and in one of twenty with 20,
and nine of ten steps of five times the noise are found.
"""

_MAD_TO_SD = 1.4826


def change_points(logs: Sequence[float]) -> list[int]:
    """The index of the first point of each new level, for a series of ln(value) in order of time.

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
    """The standard deviation around the levels, whatever these are: from first differences, most of which hold no step.

    Never less than `SD_FLOOR`: equal figures are a coarse clock or a count.
    """
    steps = [abs(after - before) for before, after in pairwise(logs)]
    return max(_MAD_TO_SD * median(steps) / math.sqrt(2), SD_FLOOR)


def _without_spikes(logs: Sequence[float], reach: float) -> list[float]:
    around = [logs[1], *logs, logs[-2]]
    return [
        min(max(y, min(left, right) - reach), max(left, right) + reach)
        for left, y, right in zip(around, logs, around[2:], strict=False)
    ]
