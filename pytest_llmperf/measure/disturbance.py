"""Disturbance by others: a request during which this process waited for a processor is made again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import Generic, TypeVar

from pytest_llmperf.measure.clock import NS_PER_MS

MOST_WAITED = 0.02
"""Share of a request's time that may pass in waiting: what a comparison tolerates (`delta0`)."""
PATIENCE = 3
"""Requests that are made at most for each that is wanted."""

_Timed = TypeVar("_Timed")
_TASKS = Path("/proc/self/task")


@dataclass(frozen=True)
class Undisturbed(Generic[_Timed]):
    """The requests that are kept, in their order, and how many of them were disturbed; ``None`` if unknown."""

    requests: list[_Timed]
    disturbed: int | None


@dataclass(frozen=True)
class _Attempt(Generic[_Timed]):
    number: int
    request: _Timed
    waited: float | None
    """Share of its time; ``None`` if unknown."""

    @property
    def is_disturbed(self) -> bool:
        return self.waited is not None and self.waited > MOST_WAITED


def waited_ms() -> float | None:
    """How long threads of this process have been ready to run and had no processor, in milliseconds, since they began.

    Linux counts it (the second figure of ``schedstat``); elsewhere ``None``. Waiting for a lock, a file or a sleep is
    not in it: code that waits is not mistaken for a machine that is busy.
    """
    try:
        delays = [(task / "schedstat").read_text(encoding="ascii").split()[1] for task in _TASKS.iterdir()]
        return sum(map(int, delays)) / NS_PER_MS
    except (OSError, ValueError, IndexError):
        return None


def undisturbed(make: Callable[[], tuple[_Timed, float]], wanted: int) -> Undisturbed[_Timed]:
    """Make requests until as many as wanted were not disturbed, or too many were.

    Args:
        make: makes a request and tells its wall time in milliseconds.
        wanted: how many to keep. Where fewer were left in peace, the least disturbed ones make up for the rest.
    """
    attempts: list[_Attempt[_Timed]] = []
    for attempt in islice(_attempts(make), PATIENCE * wanted):
        attempts.append(attempt)
        if sum(not one.is_disturbed for one in attempts) == wanted:
            break
    kept = sorted(attempts, key=lambda one: one.waited if one.is_disturbed and one.waited else 0.0)[:wanted]
    known = all(one.waited is not None for one in kept)
    requests = [one.request for one in sorted(kept, key=attrgetter("number"))]
    return Undisturbed(requests, sum(one.is_disturbed for one in kept) if known else None)


def _attempts(make: Callable[[], tuple[_Timed, float]]) -> Iterator[_Attempt[_Timed]]:
    number = 0
    while True:
        before = waited_ms()
        request, wall_ms = make()
        after = waited_ms()
        waited = None if before is None or after is None or not wall_ms else (after - before) / wall_ms
        yield _Attempt(number, request, waited)
        number += 1
