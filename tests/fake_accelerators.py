"""Fakes of ``torch.xpu`` with two devices and ``torch.mps`` with one: the documented functions for events and memory.

Each device does its work in order. Its time advances, in milliseconds, with work and while the host sleeps.
"""

from __future__ import annotations


class FakeXpuEvent:
    """Belongs to the device of its stream; it has no time until that device is synchronized."""

    def __init__(self, xpu: FakeXpu, *, enable_timing: bool) -> None:
        self.xpu, self.timed, self.device, self.time = xpu, enable_timing, None, None

    def record(self, stream: int | None = None) -> None:
        stream = self.xpu.current if stream is None else stream
        assert self.device in (None, stream), "the stream's device must match the event's device"
        self.device, self.time = stream, self.xpu.now[stream]
        self.xpu.pending[stream].append(self)

    def elapsed_time(self, end: FakeXpuEvent, /) -> float:
        if not (self.timed and end.timed):
            raise RuntimeError("Both events must be created with argument 'enable_timing=True'.")
        if {self, end} & {event for events in self.xpu.pending for event in events}:
            raise RuntimeError("Both events must be completed before calculating elapsed time.")
        assert self.device == end.device, "events of two devices cannot be compared"
        return end.time - self.time


class FakeXpu:
    """Fakes ``torch.xpu``; a stream is the number of its device."""

    __name__ = "torch.xpu"

    def __init__(self) -> None:
        self.current = 0
        self.now = [0.0, 0.0]
        self.pending: list[list[FakeXpuEvent]] = [[], []]
        self.allocated = [0, 0]
        self.peak = [0, 0]

    def sleep(self, seconds: float) -> None:
        self.now = [now + 1000 * seconds for now in self.now]

    def work(self, device: int, milliseconds: float) -> None:
        self.now[device] += milliseconds

    def allocate(self, device: int, size: int) -> None:
        self.allocated[device] += size
        self.peak[device] = max(self.peak[device], self.allocated[device])

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 2

    def current_device(self) -> int:
        return self.current

    def set_device(self, device: str) -> None:
        self.current = index(device)

    def current_stream(self, device: str | None = None) -> int:
        return self.current if device is None else index(device)

    def synchronize(self, device: str | None = None) -> None:
        self.pending[self.current_stream(device)].clear()

    def Event(self, enable_timing: bool = False) -> FakeXpuEvent:  # noqa: N802  # torch's name
        return FakeXpuEvent(self, enable_timing=enable_timing)

    def empty_cache(self) -> None:
        """Do nothing: there is no cache."""

    def reset_peak_memory_stats(self, device: str | None = None) -> None:
        self.peak[self.current_stream(device)] = self.allocated[self.current_stream(device)]

    def max_memory_allocated(self, device: str | None = None) -> int:
        return self.peak[self.current_stream(device)]

    def max_memory_reserved(self, device: str | None = None) -> int:
        return 2 * self.peak[self.current_stream(device)]


def index(device: str) -> int:
    return int(device.partition(":")[2])


class FakeMpsEvent:
    """Its time is that of a delayed callback; the first of two events is delayed more than the second."""

    def __init__(self, mps: FakeMps, *, enable_timing: bool) -> None:
        self.mps, self.timed, self.asked = mps, enable_timing, False
        self.time = 0.0

    def record(self) -> None:
        self.mps.lateness_ms = 0.25 - self.mps.lateness_ms
        self.time = self.mps.now + self.mps.lateness_ms

    def elapsed_time(self, end: FakeMpsEvent, /) -> float:
        assert not end.asked, "torch would wait forever"
        end.asked = True
        if not (self.timed and end.timed):
            raise RuntimeError("Events were not created with argument 'enable_timing=True'")
        if end.time <= self.time:
            raise RuntimeError("End event 2 was not recorded after start event 1")
        return end.time - self.time


class FakeMps:
    """Fakes ``torch.mps``, whose functions take no device and which has no peak of memory."""

    __name__ = "torch.mps"

    def __init__(self) -> None:
        self.now = 0.0
        self.lateness_ms = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += 1000 * seconds

    def work(self, milliseconds: float) -> None:
        self.now += milliseconds

    def synchronize(self) -> None:
        """Do nothing: work completes at once."""

    def Event(self, enable_timing: bool = False) -> FakeMpsEvent:  # noqa: N802  # torch's name
        return FakeMpsEvent(self, enable_timing=enable_timing)

    def current_allocated_memory(self) -> int:
        return 3 << 20

    def driver_allocated_memory(self) -> int:
        return 5 << 20
