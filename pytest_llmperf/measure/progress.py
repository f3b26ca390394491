"""Current phase of a test and memory in use, for error messages."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pytest_llmperf.engines.executions.request import RequestTimes

SETUP = "setup"
LOAD = "load"
TEST_BODY = "test body"
TIMED_REQUESTS = "timed requests"


@dataclass(frozen=True)
class Moment:
    """A phase and the memory in use, in bytes; ``None`` where it cannot be read."""

    phase: str
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None
    rss_bytes: int | None = None

    def __str__(self) -> str:
        figures = {
            "allocated": self.allocated_bytes,
            "reserved": self.reserved_bytes,
            "resident on the host": self.rss_bytes,
        }
        told = ", ".join(f"{_size(value)} {name}" for name, value in figures.items() if value is not None)
        return f"in phase {self.phase!r}" + (f" with {told}" if told else "")


class Watcher(Protocol):
    """Is notified of a test's phases and timed requests."""

    def enter(self, phase: str) -> None:
        """A phase begins."""

    def request(self, times: RequestTimes) -> None:
        """A timed request has ended."""


class Progress:
    """The current phase of the tests on a device. It never changes inside a timed request.

    Args:
        device: the torch device whose memory is read.

    Attributes:
        phase: The current phase.
        listener: Called at the start of each phase, with its `Moment`.
        watchers: Notified of each phase and of each timed request's end, in order; the first one without delay.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self.phase = SETUP
        self.listener: Callable[[Moment], None] | None = None
        self.watchers: list[Watcher] = []

    def enter(self, phase: str) -> None:
        """Begin a phase, which ends the previous one."""
        self.phase = phase
        for watcher in self.watchers:
            watcher.enter(phase)
        if self.listener:
            self.listener(self.moment())

    def tell_request(self, times: RequestTimes) -> None:
        """Notify the watchers that a timed request has ended."""
        for watcher in self.watchers:
            watcher.request(times)

    def moment(self) -> Moment:
        """The current phase and memory in use."""
        import psutil

        allocated, reserved = _device_memory(self._device)
        return Moment(self.phase, allocated, reserved, psutil.Process().memory_info().rss)


def _device_memory(device: str) -> tuple[int | None, int | None]:
    """Bytes allocated to tensors and reserved by the caching allocator; torch's CPU allocator counts neither."""
    module: Any = getattr(sys.modules.get("torch"), device.partition(":")[0], None)
    if hasattr(module, "driver_allocated_memory"):  # MPS
        return module.current_allocated_memory(), module.driver_allocated_memory()
    if not hasattr(module, "memory_reserved"):
        return None, None
    return module.memory_allocated(device), module.memory_reserved(device)


def _size(number: int) -> str:
    return f"{number / 2**30:.2f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"
