"""A clock that advances by a fixed step at each stamp."""

from __future__ import annotations

import itertools


class TickingClock:
    """Advances by one millisecond at each stamp."""

    name = "ticking"

    def __init__(self) -> None:
        self.ticks = itertools.count()

    def stamp(self) -> int:
        return next(self.ticks)

    def synchronize(self) -> None:
        pass

    def elapsed_ms(self, start: int, end: int) -> float:
        return float(end - start)
