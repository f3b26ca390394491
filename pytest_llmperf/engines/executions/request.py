"""Time one request: its start and the time of each output token."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from pytest_llmperf.engines.executions.execution import Generated, OnToken
from pytest_llmperf.hardware.clock import NS_PER_MS, Clock

Run = Callable[[OnToken], Generated]
"""Makes one request."""


@dataclass(frozen=True)
class RequestTimes:
    """Times of one request by the device's clock, and its wall time by the host's."""

    ttft_ms: float
    itl_ms: list[float]
    """Gaps between consecutive tokens: one fewer than there are tokens."""
    wall_ms: float

    @property
    def e2e_ms(self) -> float:
        """Start of the request to its last token."""
        return self.ttft_ms + sum(self.itl_ms)

    @property
    def tpot_ms(self) -> float | None:
        """(last token - first token) / (output tokens - 1); ``None`` for a single token."""
        return sum(self.itl_ms) / len(self.itl_ms) if self.itl_ms else None


def time_request(run: Run, clock: Clock) -> tuple[RequestTimes, Generated]:
    """Make one request and record when each token is available."""
    stamps: list[Any] = []
    gc.collect()
    clock.synchronize()
    wall_start = time.perf_counter_ns()
    start = clock.stamp()
    generated = run(lambda: stamps.append(clock.stamp()))
    clock.synchronize()
    wall_ms = (time.perf_counter_ns() - wall_start) / NS_PER_MS
    gaps = [clock.elapsed_ms(before, after) for before, after in pairwise(stamps)]
    return RequestTimes(clock.elapsed_ms(start, stamps[0]), gaps, wall_ms), generated
