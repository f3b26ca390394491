"""Choice of the clock: the device's events where they work, else the host's."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch

from pytest_llmperf.hardware import clock as clocks
from pytest_llmperf.hardware.clock import EventClock, HostClock, SynchronizedClock, clock_for


class FakeEvent:
    """Behaves as documented for torch.cuda.Event."""

    times = itertools.count()

    def __init__(self, enable_timing: bool = False) -> None:
        self.timed = enable_timing
        self.time: float | None = None

    def record(self, stream: str) -> None:
        self.time = float(next(self.times))

    def elapsed_time(self, end: FakeEvent) -> float:
        if not (self.timed and end.timed):
            raise RuntimeError("Both events must be created with argument 'enable_timing=True'.")
        return end.time - self.time


class BackwardEvent(FakeEvent):
    def elapsed_time(self, end: FakeEvent) -> float:
        return -1.0


class UntimedEvent(FakeEvent):
    def elapsed_time(self, end: FakeEvent) -> float:
        raise NotImplementedError


def fake_module(event: type | None) -> SimpleNamespace:
    calls: list[str] = []
    module = SimpleNamespace(
        __name__="torch.xpu",
        synchronize=lambda device: calls.append("synchronize"),
        set_device=calls.append,
        current_stream=lambda device: f"stream of {device}",
        calls=calls,
    )
    if event is not None:
        module.Event = event
    return module


def test_events_are_used_where_they_run_forwards(monkeypatch):
    """Stamps do not synchronize, and the requested device becomes the current one."""
    module = fake_module(FakeEvent)
    monkeypatch.setattr(torch, "xpu", module)
    clock = clock_for("xpu:1")
    assert isinstance(clock, EventClock)
    assert clock.name == "xpu events"
    assert module.calls == ["xpu:1", "synchronize"]
    start, end = clock.stamp(), clock.stamp()
    assert clock.elapsed_ms(start, end) == 1.0
    assert module.calls == ["xpu:1", "synchronize"]


@pytest.mark.parametrize("event", [None, BackwardEvent, UntimedEvent], ids=["missing", "backward", "not implemented"])
def test_without_working_events_every_stamp_synchronizes(monkeypatch, event):
    """The fall-back is explicit and named."""
    module = fake_module(event)
    monkeypatch.setattr(torch, "xpu", module)
    clock = clock_for("xpu:0")
    assert isinstance(clock, SynchronizedClock)
    assert clock.name == "perf_counter after synchronize"
    module.calls.clear()
    clock.stamp()
    assert module.calls == ["synchronize"]


def test_a_cpu_has_the_hosts_clock(monkeypatch):
    """Stamps are nanoseconds; differences are milliseconds."""
    monkeypatch.setattr(clocks.time, "perf_counter_ns", iter([1_000_000, 3_500_000]).__next__)
    clock = clock_for("cpu")
    assert type(clock) is HostClock
    assert clock.elapsed_ms(clock.stamp(), clock.stamp()) == 2.5
