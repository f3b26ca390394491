"""Summarize the samples of one run: median, spread and percentiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, median
from typing import NamedTuple

from pytest_llmperf.errors import MeasurementError

TAIL_REQUESTS = {95: 200, 99: 1000}
"""Minimum requests to show a tail percentile; with fewer, it is close to the maximum."""


class Summary(NamedTuple):
    """Median of one run's samples, and the mean and median absolute deviation of their logarithms."""

    value: float
    mean_log: float
    mad_log: float


def summarize(samples: Sequence[float]) -> Summary:
    """Return the median in the samples' unit, with the mean and the spread of the logarithms.

    The median is that of the logarithms. Requests of one run are correlated, so they are reduced to one figure and
    never counted as replicates.

    Raises:
        MeasurementError: there is no sample, or one is not a positive finite number.
    """
    if not samples:
        raise MeasurementError("no sample was measured; expected at least one")
    for sample in samples:
        if not (math.isfinite(sample) and sample > 0):
            raise MeasurementError(f"a sample of {sample} is not a duration; expected a positive finite number")
    logs = [math.log(sample) for sample in samples]
    middle = median(logs)
    return Summary(math.exp(middle), fmean(logs), median(abs(value - middle) for value in logs))


def percentile(samples: Sequence[float], q: int) -> float:
    """Return the ``q``-th percentile by linear interpolation of order statistics (Hyndman and Fan, type 7)."""
    ordered = sorted(samples)
    place = (len(ordered) - 1) * q / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
