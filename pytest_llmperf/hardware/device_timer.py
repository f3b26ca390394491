"""A timer function based on the device's clock, for tools that accept timers, such as pytest-benchmark."""

from __future__ import annotations

from functools import cache

from pytest_llmperf.hardware.clock import MS_PER_S, Clock


class DeviceTimer:
    """Callable that returns seconds by the device's clock; each call synchronizes the device.

    Each call adds the time since the previous call. Events return milliseconds in single precision, so the distance to
    one far stamp would be coarse.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._clock.synchronize()
        self._latest = clock.stamp()
        self._seconds = 0.0

    def __call__(self) -> float:
        """Seconds since the timer was created."""
        stamp = self._clock.stamp()
        self._clock.synchronize()
        self._seconds += self._clock.elapsed_ms(self._latest, stamp) / MS_PER_S
        self._latest = stamp
        return self._seconds


def device_timer() -> float:
    """Seconds by the clock of torch's current accelerator, or of the host without one.

    The first call in a process fixes the device, so call ``torch.cuda.set_device`` before it.

    Raises:
        MissingDependency: torch is not installed.
    """
    return _timer()()


@cache
def _timer() -> DeviceTimer:
    from pytest_llmperf.hardware.clock import clock_for
    from pytest_llmperf.hardware.device import resolve_device

    return DeviceTimer(clock_for(resolve_device("auto")))
