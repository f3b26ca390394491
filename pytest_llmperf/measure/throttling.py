"""Discard, count and repeat samples taken while the GPU was throttled."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

from pytest_llmperf.hardware.environment import NvmlUnavailableError, nvml_handle, whole_gpu
from pytest_llmperf.hardware.gpu_clocks import ClockState, clock_state
from pytest_llmperf.hardware.gpu_monitor import full_sm_clock_mhz
from pytest_llmperf.measure.guards import HELD_BACK, LEAST_CLOCK

MOST_DISCARDED = 3
"""Most discarded batches per timing. A device still throttled after this many pauses will remain so for a while."""
PAUSE_S = 0.05
"""nvbench's recovery delay; each further pause is twice as long."""


class Throttling:
    """Reads a device's clocks around batches of samples.

    Args:
        device: the torch device.
        full_mhz: the highest SM clock allowed; ``None`` if unknown.
    """

    def __init__(self, device: str, full_mhz: int | None = None) -> None:
        self._device = device
        self._full_mhz = full_mhz
        self._batches = 0
        self.discarded = 0
        """Samples discarded because the device was throttled."""
        self.kept = 0
        """Samples kept although the device was throttled, because too many batches had been discarded."""
        self.looks: list[ClockState] = []
        """Clock readings right before and right after each kept batch."""
        self._now = clock_state(device)

    def accepts(self, samples: int) -> bool:
        """Whether to keep the batch of this many samples that has just ended."""
        start, self._now = self._now, clock_state(self._device)
        is_throttled = self._is_throttled(start) or self._is_throttled(self._now)
        if is_throttled and self._batches < MOST_DISCARDED:
            self._batches += 1
            self.discarded += samples
            return False
        self.kept += samples if is_throttled else 0
        self.looks += [start, self._now]
        return True

    def recover(self, warm_up: Callable[[], object]) -> None:
        """Pause to let the device cool down, then warm it up again, because an idle device lowers its clocks."""
        time.sleep(PAUSE_S * 2 ** (self._batches - 1))
        warm_up()
        self._now = clock_state(self._device)

    def _is_throttled(self, state: ClockState) -> bool:
        """Whether heat, power failure, or an SM clock below `LEAST_CLOCK` (unless idle) slowed the device."""
        reasons = state.throttle_reasons or ()
        if HELD_BACK.intersection(reasons):
            return True
        if state.sm_mhz is None or self._full_mhz is None or "GpuIdle" in reasons:
            return False
        return state.sm_mhz < LEAST_CLOCK * self._full_mhz


@contextmanager
def watch_throttling(device: str) -> Iterator[Throttling]:
    """Watch a device in the block; NVML stays initialized, so that readings do not initialize it each time."""
    full_mhz = None
    with ExitStack() as stack:
        if device.startswith("cuda"):
            with suppress(NvmlUnavailableError):
                nvml, handle = stack.enter_context(nvml_handle(device))
                full_mhz = full_sm_clock_mhz(nvml, whole_gpu(nvml, handle))
        yield Throttling(device, full_mhz)
