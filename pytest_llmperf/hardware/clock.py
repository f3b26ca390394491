"""Device clocks: CUDA, XPU or MPS events, or the host's clock. Other measuring code does not depend on the device."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

NS_PER_MS = 1e6
MS_PER_S = 1e3
APART_S = 0.002
"""Seconds between the two events of the trial in `_events_work`."""


class Clock(Protocol):
    """Records timestamps on a device and computes the time between two of them."""

    name: str
    """Name of the clock, recorded with every number."""

    def stamp(self) -> Any:
        """Record a timestamp in the device's current stream."""

    def synchronize(self) -> None:
        """Wait until the device has finished all queued work."""

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """Milliseconds between two stamps; call ``synchronize`` after the second one first.

        Use each stamp as the end of one pair only: without pytorch#196395, a second query of an MPS event waits
        forever.
        """


class HostClock:
    """The host's monotonic clock: exact where calls return when their work is done, as on a CPU."""

    name = "perf_counter"

    def stamp(self) -> int:
        """Read the monotonic clock, in nanoseconds."""
        return time.perf_counter_ns()

    def synchronize(self) -> None:
        """Do nothing: no work runs asynchronously."""

    def elapsed_ms(self, start: int, end: int) -> float:
        """Milliseconds between two stamps."""
        return (end - start) / NS_PER_MS


class SynchronizedClock(HostClock):
    """The host's clock, read after synchronizing: for devices without timed events.

    Each synchronization removes the overlap of host and device, so each stamp adds time.
    """

    name = "perf_counter after synchronize"

    def __init__(self, synchronize: Callable[[], None]) -> None:
        self._synchronize = synchronize

    def stamp(self) -> int:
        """Synchronize, then read the monotonic clock, in nanoseconds."""
        self._synchronize()
        return time.perf_counter_ns()

    def synchronize(self) -> None:
        """Wait for the device."""
        self._synchronize()


class ArrivalClock(HostClock):
    """The host's clock without synchronizing, for tokens that are on the host when they are yielded.

    On MPS, transformers reads each token one step late (``DeferredStopCheck``), so an event recorded then would come
    after the next step's work.
    """

    name = "perf_counter at arrival"

    def __init__(self, synchronize: Callable[[], None]) -> None:
        self._synchronize = synchronize

    def synchronize(self) -> None:
        """Wait for the device."""
        self._synchronize()


class EventClock:
    """Events in the device's stream: stamps do not synchronize, so the host can run ahead.

    Args:
        module: the torch module, such as ``torch.cuda``.
        device: the device whose current stream to use; omitted where there is only one device, as with MPS.
    """

    def __init__(self, module: Any, *device: str) -> None:
        self._module = module
        self._device = device
        self.name = f"{module.__name__.removeprefix('torch.')} events"

    def stamp(self) -> Any:
        """Record an event in the device's current stream."""
        event = self._module.Event(enable_timing=True)
        event.record(*(self._module.current_stream(device) for device in self._device))
        return event

    def synchronize(self) -> None:
        """Wait for the device."""
        self._module.synchronize(*self._device)

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """Milliseconds between two events, by the device."""
        return float(start.elapsed_time(end))


def clock_for(device: str) -> Clock:
    """Choose the best clock that works on a device, by trying its events.

    Args:
        device: ``cpu``, or a torch device such as ``cuda:1``, which becomes the current device.
    """
    import torch

    if device == "cpu":
        return HostClock()
    module: Any = getattr(torch, torch.device(device).type)
    if not hasattr(module, "set_device"):  # only one device of this kind: its functions take no device
        return _working_clock(EventClock(module))
    module.set_device(device)
    return _working_clock(EventClock(module, device))


def _working_clock(events: EventClock) -> Clock:
    return events if _events_work(events) else SynchronizedClock(events.synchronize)


def _events_work(clock: EventClock) -> bool:
    """Whether timed events exist and run forwards. Some builds raise, others return nonsense.

    The two events are spaced: without pytorch#196395, MPS reads the time in callbacks, which may run in the wrong order
    for close events.
    """
    try:
        start = clock.stamp()
        time.sleep(APART_S)
        end = clock.stamp()
        clock.synchronize()
        return clock.elapsed_ms(start, end) >= 0.0
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False
