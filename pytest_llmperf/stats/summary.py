"""From samples to one figure a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, median
from typing import NamedTuple

from pytest_llmperf.errors import MeasurementError

TAIL_REQUESTS = {95: 200, 99: 1000}
"""Requests below which a tail percentile is not shown: it would be the largest sample or close to it."""


class Summary(NamedTuple):
    """One run's figure and what lies behind it."""

    value: float
    mean_log: float
    mad_log: float


def summarize(samples: Sequence[float]) -> Summary:
    """The median of logarithms over requests, back in the samples' unit, with the spread of the logarithms.

    Requests of one run share that run's luck: they are reduced, never counted as replicates.

    Raises:
        MeasurementError: there is none, or one is not a positive finite number.
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
    """The ``q``-th percentile, linearly interpolated between order statistics (Hyndman and Fan, type 7)."""
    ordered = sorted(samples)
    place = (len(ordered) - 1) * q / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
