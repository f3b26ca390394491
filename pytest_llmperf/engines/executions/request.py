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
    gaps_ms: list[float]
    """Gaps between consecutive stamps: one fewer than there are stamps."""
    wall_ms: float
    tokens: tuple[int, ...] = ()
    """Tokens of each sequence at each stamp; empty if one came at each."""

    @property
    def output_tokens(self) -> int:
        """Tokens of each sequence."""
        return sum(self.tokens) if self.tokens else len(self.gaps_ms) + 1

    @property
    def several_at_a_time(self) -> bool:
        """Whether several tokens came at one stamp, so that the gaps between them are unknown."""
        return any(count > 1 for count in self.tokens)

    @property
    def itl_ms(self) -> list[float]:
        """Gaps between consecutive tokens: one fewer than there are tokens; none if several came at a time."""
        return [] if self.several_at_a_time else self.gaps_ms

    @property
    def e2e_ms(self) -> float:
        """Start of the request to its last token."""
        return self.ttft_ms + sum(self.gaps_ms)

    @property
    def tpot_ms(self) -> float | None:
        """(last token - first token) / tokens after those that came first; ``None`` if there are none."""
        later = self.output_tokens - (self.tokens[0] if self.tokens else 1)
        return sum(self.gaps_ms) / later if later else None

    @property
    def step_ms(self) -> float | None:
        """Mean gap between consecutive stamps: TPOT, unless several tokens came at a time; ``None`` for one stamp."""
        return sum(self.gaps_ms) / len(self.gaps_ms) if self.gaps_ms else None


def time_request(run: Run, clock: Clock) -> tuple[RequestTimes, Generated]:
    """Make one request and record when each token is available."""
    stamps: list[Any] = []
    counts: list[int] = []

    def on_token(count: int = 1, /) -> None:
        stamps.append(clock.stamp())
        counts.append(count)

    gc.collect()
    clock.synchronize()
    wall_start = time.perf_counter_ns()
    start = clock.stamp()
    generated = run(on_token)
    clock.synchronize()
    wall_ms = (time.perf_counter_ns() - wall_start) / NS_PER_MS
    gaps = [clock.elapsed_ms(before, after) for before, after in pairwise(stamps)]
    return RequestTimes(clock.elapsed_ms(start, stamps[0]), gaps, wall_ms, tuple(counts)), generated
