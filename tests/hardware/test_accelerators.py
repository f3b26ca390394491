"""XPU and MPS, simulated from torch's documentation: clocks, memory, and several devices of one kind."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from fake_accelerators import FakeMps, FakeXpu

from pytest_llmperf.engines.executions.execution_registry import find_execution
from pytest_llmperf.errors import UsageError
from pytest_llmperf.hardware import clock as clocks
from pytest_llmperf.hardware.clock import EventClock, SynchronizedClock, clock_for
from pytest_llmperf.hardware.device import resolve_device, worker_devices
from pytest_llmperf.hardware.memory import trace_memory
from pytest_llmperf.measure.generation import clock_of, time_request
from pytest_llmperf.measure.progress import Progress


@pytest.fixture
def xpu(monkeypatch):
    fake = FakeXpu()
    monkeypatch.setattr(torch, "xpu", fake)
    monkeypatch.setattr(clocks.time, "sleep", fake.sleep)
    return fake


@pytest.fixture
def mps(monkeypatch):
    fake = FakeMps()
    monkeypatch.setattr(torch, "mps", fake)
    monkeypatch.setattr(clocks.time, "sleep", fake.sleep)
    return fake


def three_tokens(work):
    """A request whose tokens take 5, 2 and 3 ms."""

    def run(on_token):
        for milliseconds in (5.0, 2.0, 3.0):
            work(milliseconds)
            on_token()

    return run


def test_an_xpu_is_timed_on_its_own_stream(xpu):
    """Even if another device has become the current one."""
    clock = clock_for("xpu:1")
    assert clock.name == "xpu events"
    assert xpu.current == 1
    xpu.set_device("xpu:0")
    times, _ = time_request(three_tokens(lambda milliseconds: xpu.work(1, milliseconds)), clock)
    assert (times.ttft_ms, times.itl_ms) == (5.0, [2.0, 3.0])


def test_mps_events_are_used_although_close_ones_come_in_any_order(mps):
    """The choice of the clock does not depend on callback order; no event ends two pairs."""
    clock = clock_for("mps")
    assert isinstance(clock, EventClock)
    assert clock.name == "mps events"
    times, _ = time_request(three_tokens(mps.work), clock)
    assert times.e2e_ms == pytest.approx(10.0, abs=0.25)
    assert times.itl_ms == pytest.approx([2.0, 3.0], abs=0.25)


def test_without_mps_events_every_stamp_waits_for_the_device(mps, monkeypatch):
    """For torch versions without MPS events."""
    monkeypatch.delattr(FakeMps, "Event")
    waits = []
    monkeypatch.setattr(mps, "synchronize", lambda: waits.append(mps.now), raising=False)
    clock = clock_for("mps")
    assert isinstance(clock, SynchronizedClock)
    clock.stamp()
    assert len(waits) == 1


def test_tokens_that_generate_reads_late_are_timed_as_they_arrive(mps, monkeypatch):
    """As transformers does on MPS: each is handed over once the next step is launched, and the last at the end.

    The device needs 2 ms a token; the host launches a step in no time, and waits for what it reads.
    """
    host = SimpleNamespace(now_ms=0.0)
    monkeypatch.setattr(clocks.time, "perf_counter_ns", lambda: int(host.now_ms * 1e6))
    monkeypatch.setattr(mps, "synchronize", lambda: setattr(host, "now_ms", mps.now))

    def generate(on_token):
        done_ms = []
        for _ in range(4):
            mps.work(2.0)
            done_ms.append(mps.now)
            if len(done_ms) > 1:
                host.now_ms = max(host.now_ms, done_ms[-2])
                on_token()
        mps.synchronize()
        on_token()

    clock = clock_for("mps")
    late, _ = time_request(generate, clock)
    assert late.itl_ms == pytest.approx([2.0, 2.0, 0.0], abs=0.5), "events: a step too few"
    times, _ = time_request(generate, clock_of(find_execution("generate"), "mps", clock))
    assert (times.ttft_ms, times.itl_ms) == (2.0, [2.0, 2.0, 2.0])
    for execution, device in (("loop", "mps"), ("generate", "cuda:0")):
        assert clock_of(find_execution(execution), device, clock) is clock


def test_peaks_of_an_xpu_are_those_of_its_own_device(xpu):
    """By phase, whichever device is the current one."""
    xpu.allocate(1, 10)
    with trace_memory("xpu:1", "first") as trace:
        xpu.allocate(1, 100)
        xpu.allocate(1, -100)
        trace.enter("second")
        xpu.allocate(0, 7000)
        xpu.allocate(1, 5)
    peaks = [(peak.allocated_bytes, peak.reserved_bytes) for peak in trace.peaks.values()]
    assert peaks == [(110, 220), (15, 30)]


def test_mps_keeps_no_peak_and_says_so(mps):
    """MPS reports current memory, which error messages show, but no peak."""
    with trace_memory("mps", "decode") as trace:
        pass
    peak = trace.peaks["decode"]
    assert (peak.allocated_bytes, peak.reserved_bytes) == (None, None)
    assert peak.reason.startswith("device peaks: torch.mps does not record peaks")
    moment = Progress("mps").moment()
    assert (moment.allocated_bytes, moment.reserved_bytes) == (3 << 20, 5 << 20)


def test_workers_get_all_visible_devices_or_those_that_are_named(xpu, monkeypatch):
    """In order and without repeats; without workers, the current or first named device is used."""
    assert worker_devices("xpu") == ["xpu:0", "xpu:1"]
    assert worker_devices("xpu:1,xpu:0,xpu:1") == ["xpu:1", "xpu:0"]
    assert worker_devices("cpu") == ["cpu"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert worker_devices("auto") == ["xpu:0", "xpu:1"]
    assert resolve_device("xpu:1,xpu:0") == "xpu:1"
    xpu.current = 1
    assert resolve_device("xpu") == "xpu:1"


@pytest.mark.parametrize("ask", [resolve_device, worker_devices])
def test_each_device_that_is_named_must_be_here(xpu, ask):
    """All named devices are checked, not only the used one."""
    with pytest.raises(UsageError, match=r"'xpu:2' is not available: torch .* sees 2 xpu devices"):
        ask("xpu:0,xpu:2")


def test_counting_devices_for_workers_touches_none(xpu, monkeypatch):
    """Querying the current device would create a context in a process that measures nothing."""
    monkeypatch.delattr(FakeXpu, "current_device")
    assert worker_devices("xpu") == ["xpu:0", "xpu:1"]
