"""The device timer, with a fake of torch.cuda."""

from __future__ import annotations

import pytest
from fake_cuda import FakeCuda

from pytest_llmperf.hardware.clock import EventClock
from pytest_llmperf.hardware.device_timer import DeviceTimer


def test_the_device_timer_waits_for_the_device_and_adds_up_pairs_of_events():
    """Seconds between two calls of device work; work before the first call is excluded."""
    cuda = FakeCuda()
    cuda.launch(1e6)
    distances = []
    clock = EventClock(cuda, "cuda:0")
    elapsed = clock.elapsed_ms
    clock.elapsed_ms = lambda start, end: distances.append(elapsed(start, end)) or distances[-1]
    timer = DeviceTimer(clock)
    start = timer()
    cuda.launch(3.0)
    middle = timer()
    cuda.launch(2.0)
    assert (middle - start, timer() - middle) == pytest.approx((0.003, 0.002))
    assert max(distances) == 3.0
