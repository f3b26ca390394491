"""One clock a device, chosen once. Nothing else in measuring code asks what kind of device it runs on."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

NS_PER_MS = 1e6


class Clock(Protocol):
    """Stamps moments on a device and tells the time between two of them."""

    name: str
    """Recorded with every number."""

    def stamp(self) -> Any:
        """Mark this moment in the device's stream of work."""

    def synchronize(self) -> None:
        """Wait until the device has done all that it was given."""

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """Milliseconds between two stamps. The device must have been synchronized since."""


class HostClock:
    """The host's monotonic clock: exact where work is done when the call returns, as on a CPU."""

    name = "perf_counter"

    def stamp(self) -> int:
        """Nanoseconds of a monotonic clock."""
        return time.perf_counter_ns()

    def synchronize(self) -> None:
        """Nothing runs behind the host's back."""

    def elapsed_ms(self, start: int, end: int) -> float:
        """Milliseconds between two stamps."""
        return (end - start) / NS_PER_MS


class SynchronizedClock(HostClock):
    """The host's clock, read after the device was synchronized: for devices whose events cannot be timed.

    The synchronization takes away the overlap of host and device, so each stamp costs time of its own.
    """

    name = "perf_counter after synchronize"

    def __init__(self, synchronize: Callable[[], None]) -> None:
        self._synchronize = synchronize

    def stamp(self) -> int:
        """Nanoseconds of a monotonic clock, once the device is idle."""
        self._synchronize()
        return time.perf_counter_ns()

    def synchronize(self) -> None:
        """Wait for the device."""
        self._synchronize()


class EventClock:
    """Events in the device's stream: no synchronization between stamps, so that the host may run ahead."""

    def __init__(self, module: Any, device: str) -> None:
        self._module = module
        self._device = device
        self.name = f"{module.__name__.removeprefix('torch.')} events"

    def stamp(self) -> Any:
        """An event recorded in the device's current stream."""
        event = self._module.Event(enable_timing=True)
        event.record()
        return event

    def synchronize(self) -> None:
        """Wait for the device."""
        self._module.synchronize()

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """Milliseconds of the device between two events."""
        return float(start.elapsed_time(end))


def clock_for(device: str) -> Clock:
    """The best clock that works on this device, found by trying it.

    Args:
        device: ``cpu``, or a device of torch such as ``cuda:1``; it becomes the current one.
    """
    import torch

    if device == "cpu":
        return HostClock()
    module: Any = getattr(torch, torch.device(device).type)
    if hasattr(module, "set_device"):
        module.set_device(device)
    events = EventClock(module, device)
    return events if _events_work(events) else SynchronizedClock(module.synchronize)


def _events_work(clock: EventClock) -> bool:
    """Whether timed events exist and run forwards. Some builds raise, others return nonsense."""
    try:
        start, end = clock.stamp(), clock.stamp()
        clock.synchronize()
        return clock.elapsed_ms(start, end) >= 0.0
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False
