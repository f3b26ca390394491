"""Repeat requests that CPU contention slowed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import Generic, TypeVar

from pytest_llmperf.hardware.clock import NS_PER_MS

MOST_WAITED = 0.02
"""Largest share of a request's time spent waiting for a processor; equals a comparison's tolerance (`delta0`)."""
PATIENCE = 3
"""Most requests made for each one wanted."""

_Timed = TypeVar("_Timed")
_TASKS = Path("/proc/self/task")


@dataclass(frozen=True)
class KeptRequests(Generic[_Timed]):
    """The kept requests, in order, and how many of them were disturbed (``None`` if unknown)."""

    requests: list[_Timed]
    disturbed: int | None


@dataclass(frozen=True)
class _Attempt(Generic[_Timed]):
    number: int
    request: _Timed
    waited: float | None
    """Waiting time as a share of the request's time; ``None`` if unknown."""

    @property
    def is_disturbed(self) -> bool:
        return self.waited is not None and self.waited > MOST_WAITED


Waits = Mapping[str, float]
"""Milliseconds that each thread of this process has been runnable without a processor, since it began."""


def waits_ms() -> Waits | None:
    """Read waiting times by thread from Linux (the second field of ``schedstat``); ``None`` elsewhere.

    They exclude waiting for locks, files and sleeps, so code that waits is not mistaken for contention.
    """
    try:
        return {
            task.name: int((task / "schedstat").read_text("ascii").split()[1]) / NS_PER_MS for task in _TASKS.iterdir()
        }
    except (OSError, ValueError, IndexError):
        return None


def longest_wait(before: Waits | None, after: Waits | None) -> float | None:
    """The longest waiting time of any thread between two moments, in milliseconds: it delayed the others."""
    if before is None or after is None:
        return None
    return max((wait - before.get(thread, 0.0) for thread, wait in after.items()), default=None)


def undisturbed(make: Callable[[], tuple[_Timed, float]], wanted: int) -> KeptRequests[_Timed]:
    """Make requests until ``wanted`` of them are undisturbed, or the limit `PATIENCE` is reached.

    Args:
        make: makes a request; returns it and its wall time in milliseconds.
        wanted: requests to keep. If too few are undisturbed, the least disturbed ones fill up the number.
    """
    attempts: list[_Attempt[_Timed]] = []
    for attempt in islice(_attempts(make), PATIENCE * wanted):
        attempts.append(attempt)
        if sum(not one.is_disturbed for one in attempts) == wanted:
            break
    kept = sorted(attempts, key=lambda one: one.waited if one.is_disturbed and one.waited else 0.0)[:wanted]
    known = all(one.waited is not None for one in kept)
    requests = [one.request for one in sorted(kept, key=attrgetter("number"))]
    return KeptRequests(requests, sum(one.is_disturbed for one in kept) if known else None)


def _attempts(make: Callable[[], tuple[_Timed, float]]) -> Iterator[_Attempt[_Timed]]:
    number = 0
    while True:
        before = waits_ms()
        request, wall_ms = make()
        waited = longest_wait(before, waits_ms())
        yield _Attempt(number, request, None if waited is None or not wall_ms else waited / wall_ms)
        number += 1
