"""Warm up a shape until request durations are steady."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

from pytest_llmperf.storage.schema import Warmup

WINDOW = 2
"""Requests per window; the last two windows are compared."""
STEADY = 0.02
"""Largest relative change between two windows' medians that counts as steady."""


def warm_up(request: Callable[[], float], *, cap: int) -> Warmup:
    """Make warm-up requests until the last two windows show no trend, at most ``cap``.

    There is no trend where the windows' medians differ by at most 2 %, or where the windows overlap, so that noise
    hides any rest. A fixed number of requests either wastes time or measures a model that is still warming up.

    Args:
        request: makes one request of the shape to measure and returns its duration, in any unit. The first one does the
            setup and is excluded from the windows.
        cap: most requests to make; fewer than five cannot show a trend.
    """
    durations: list[float] = []
    for made in range(1, cap + 1):
        duration = request()
        if made > 1:
            durations.append(duration)
        if len(durations) >= 2 * WINDOW and _is_steady(durations):
            return Warmup(requests=made, steady=True, drift=_drift(durations))
    return Warmup(requests=cap, steady=False, drift=_drift(durations))


def requests_before_steady(warmup: Warmup) -> int:
    """Return how many requests of a warm-up that became steady came before the windows that showed no trend."""
    return max(0, warmup.requests - 2 * WINDOW)


def _is_steady(durations: list[float]) -> bool:
    before, last = durations[-2 * WINDOW : -WINDOW], durations[-WINDOW:]
    overlap = min(before) <= max(last) and min(last) <= max(before)
    drift = _drift(durations)
    return overlap or (drift is not None and abs(drift) <= STEADY)


def _drift(durations: list[float]) -> float | None:
    if len(durations) < 2 * WINDOW:
        return None
    return median(durations[-WINDOW:]) / median(durations[-2 * WINDOW : -WINDOW]) - 1.0
