"""One clock a device, chosen once. Nothing else in measuring code asks what kind of device it runs on."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

NS_PER_MS = 1e6
APART_S = 0.002
"""Time between the two events that are tried."""


class Clock(Protocol):
    """Stamps moments on a device and tells the time between two of them."""

    name: str
    """Recorded with every number."""

    def stamp(self) -> Any:
        """Mark this moment in the device's stream of work."""

    def synchronize(self) -> None:
        """Wait until the device has done all that it was given."""

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """Milliseconds between two stamps, once the device has been synchronized since.

        A stamp may be the end of one pair only: without pytorch#196395, MPS waits forever when asked of one again.
        """


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


class ArrivalClock(HostClock):
    """The host's clock as it is, for tokens that are on the host when they are handed over.

    transformers reads them one step late on MPS (``DeferredStopCheck``): an event that is recorded then lies behind the
    work of the next step.
    """

    name = "perf_counter at arrival"

    def __init__(self, synchronize: Callable[[], None]) -> None:
        self._synchronize = synchronize

    def synchronize(self) -> None:
        """Wait for the device."""
        self._synchronize()


class EventClock:
    """Events in the device's stream: no synchronization between stamps, so that the host may run ahead.

    Args:
        module: of torch, such as ``torch.cuda``.
        device: of that kind, whichever is the current one; none where there is but one, as with MPS.
    """

    def __init__(self, module: Any, *device: str) -> None:
        self._module = module
        self._device = device
        self.name = f"{module.__name__.removeprefix('torch.')} events"

    def stamp(self) -> Any:
        """An event recorded in the device's current stream."""
        event = self._module.Event(enable_timing=True)
        event.record(*(self._module.current_stream(device) for device in self._device))
        return event

    def synchronize(self) -> None:
        """Wait for the device."""
        self._module.synchronize(*self._device)

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
    if not hasattr(module, "set_device"):  # there is one device of that kind, which no function is told
        return _working_clock(EventClock(module))
    module.set_device(device)
    return _working_clock(EventClock(module, device))


def _working_clock(events: EventClock) -> Clock:
    return events if _events_work(events) else SynchronizedClock(events.synchronize)


def _events_work(clock: EventClock) -> bool:
    """Whether timed events exist and run forwards. Some builds raise, others return nonsense.

    The two are apart: without pytorch#196395, MPS takes the time in callbacks, and those of close events may swap.
    """
    try:
        start = clock.stamp()
        time.sleep(APART_S)
        end = clock.stamp()
        clock.synchronize()
        return clock.elapsed_ms(start, end) >= 0.0
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False
