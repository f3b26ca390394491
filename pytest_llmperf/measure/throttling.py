"""Samples that were taken while the device was throttled: discarded, counted, and made again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

from pytest_llmperf.hardware.environment import NvmlUnavailableError, nvml_handle, whole_gpu
from pytest_llmperf.hardware.gpu_clocks import ClockState, clock_state
from pytest_llmperf.hardware.gpu_monitor import full_sm_clock_mhz
from pytest_llmperf.measure.guards import HELD_BACK, LEAST_CLOCK

MOST_DISCARDED = 3
"""Batches of one timing. A device that is throttled after as many pauses will be for a while."""
PAUSE_S = 0.05
"""As nvbench's recovery delay; each further pause is twice as long."""


class Throttling:
    """Reads a device's clocks around batches of samples.

    Args:
        device: as torch names it.
        full_mhz: the SM clock that it may run at; ``None`` where nothing tells.
    """

    def __init__(self, device: str, full_mhz: int | None = None) -> None:
        self._device = device
        self._full_mhz = full_mhz
        self._batches = 0
        self.discarded = 0
        """Samples that were taken while the device was throttled."""
        self.kept = 0
        """Samples that were kept in spite of that: too many had been discarded."""
        self.looks: list[ClockState] = []
        """Right before and right after each batch that was kept."""
        self._now = clock_state(device)

    def accepts(self, samples: int) -> bool:
        """Whether to keep the batch of so many samples that has just ended."""
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
        """Let the device cool down, then make it busy again: an idle one lowers its clocks by itself."""
        time.sleep(PAUSE_S * 2 ** (self._batches - 1))
        warm_up()
        self._now = clock_state(self._device)

    def _is_throttled(self, state: ClockState) -> bool:
        """By heat or failing power, or an SM clock below the guard's least share that being idle does not explain."""
        reasons = state.throttle_reasons or ()
        if HELD_BACK.intersection(reasons):
            return True
        if state.sm_mhz is None or self._full_mhz is None or "GpuIdle" in reasons:
            return False
        return state.sm_mhz < LEAST_CLOCK * self._full_mhz


@contextmanager
def watch_throttling(device: str) -> Iterator[Throttling]:
    """Watch a device inside the block; NVML stays started meanwhile, so that a reading takes no start of its own."""
    full_mhz = None
    with ExitStack() as stack:
        if device.startswith("cuda"):
            with suppress(NvmlUnavailableError):
                nvml, handle = stack.enter_context(nvml_handle(device))
                full_mhz = full_sm_clock_mhz(nvml, whole_gpu(nvml, handle))
        yield Throttling(device, full_mhz)
