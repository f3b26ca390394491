"""GPU conditions during a measurement, from NVML: clocks, other processes, temperature and energy."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

from pytest_llmperf.hardware.cpu_monitor import own_processes
from pytest_llmperf.hardware.environment import NvmlUnavailableError, ask_nvml, nvml_handle, whole_gpu
from pytest_llmperf.hardware.gpu_clocks import ClockState, clock_state
from pytest_llmperf.hardware.throttle_counters import Violations, violation_share, violations
from pytest_llmperf.metrics import Figure
from pytest_llmperf.system.run_processes import USERS_ABOVE, run_process_ids

SHORTEST_ENERGY_S = 1.0
"""Ten steps of an energy counter that some devices update every 100 ms, so the error is 10 % at most."""


@dataclass(frozen=True, kw_only=True)
class GpuConditions:
    """GPU conditions; ``None`` where the driver does not report a value, and ``nvml_reason`` says why."""

    sm_clock_before_mhz: int | None = None
    sm_clock_under_load_mhz: float | None = None
    """Median of readings right after each timed request. A reading is faster than the clock governor's reaction to
    idling."""
    sm_clock_after_mhz: int | None = None
    sm_clock_full_mhz: int | None = None
    """The highest clock allowed: the maximum, or an application clock set below it."""
    memory_clock_under_load_mhz: float | None = None
    throttle_reasons: str | None = None
    """Reasons for reduced clocks under load, by NVML's names; empty if there were none."""
    thermal_violation_share: float | None = None
    """Share of the timed requests' time in which heat kept clocks below the application clock."""
    power_violation_share: float | None = None
    board_limit_violation_share: float | None = None
    reliability_violation_share: float | None = None
    temperature_before_c: int | None = None
    temperature_after_c: int | None = None
    other_processes_on_device: int | None = None
    """The larger of the counts before and after."""
    nvml_reason: str = ""


@dataclass(frozen=True)
class Counters:
    """The driver's counters at the start or end of the timed requests."""

    energy_mj: int | None
    violations: Violations
    moment_s: float


class GpuWatch:
    """Reads a GPU from creation until ``conditions`` is called.

    Args:
        device: the torch device.
        nvml: the initialized NVML module.
        handle: NVML's handle for the device.
    """

    def __init__(self, device: str, nvml: Any, handle: Any) -> None:
        self._device, self._nvml, self._handle = device, nvml, handle
        self._gpu = whole_gpu(nvml, handle)
        self._before = clock_state(device)
        self._temperature = self._temperature_c()
        self._others = other_processes(nvml, handle)
        self._looks: list[ClockState] = []
        self._counters: list[Counters] = []

    def begin(self) -> None:
        """Start of the timed requests."""
        self._counters = [self._counters_now()]

    def look(self) -> None:
        """Read the clocks right after a timed request, while the device has only just become idle.

        A thread that reads during a request would take the interpreter from it. An untimed request would not be the
        load that is compared.
        """
        self._looks.append(clock_state(self._device))

    def end(self) -> None:
        """End of the timed requests."""
        self._counters.append(self._counters_now())

    def conditions(self) -> GpuConditions:
        """Return the earlier readings and take the last ones."""
        after, told = clock_state(self._device), [self._others, other_processes(self._nvml, self._handle)]
        hidden = "the driver hides other processes" if None in told else ""
        shares = self._violation_shares()
        uncounted = "the driver does not count all throttling" if None in shares.values() else ""
        return GpuConditions(
            sm_clock_before_mhz=self._before.sm_mhz,
            sm_clock_under_load_mhz=_median([look.sm_mhz for look in self._looks]),
            sm_clock_after_mhz=after.sm_mhz,
            sm_clock_full_mhz=full_sm_clock_mhz(self._nvml, self._gpu),
            memory_clock_under_load_mhz=_median([look.memory_mhz for look in self._looks]),
            throttle_reasons=_held_back(self._looks),
            **shares,
            temperature_before_c=self._temperature,
            temperature_after_c=self._temperature_c(),
            other_processes_on_device=max((count for count in told if count is not None), default=None),
            nvml_reason="; ".join(filter(None, (after.reason, hidden, uncounted))),
        )

    def energy(self, tokens_per_request: int) -> Figure:
        """Device energy per output token, including the pauses between timed requests."""
        if len(self._counters) < 2 or not self._looks:  # noqa: PLR2004  # a start and an end
            return _no_energy("no request was timed")
        start, end = self._counters
        seconds = end.moment_s - start.moment_s
        if start.energy_mj is None or end.energy_mj is None:
            return _no_energy("the driver has no energy counter for this device")
        if self._gpu is not self._handle:
            return _no_energy("a MIG instance has no energy counter of its own")
        if seconds < SHORTEST_ENERGY_S:
            return _no_energy(
                f"timed for {seconds:.2g} s, expected {SHORTEST_ENERGY_S:g} s or more: the counter updates every 100 ms"
            )
        tokens = len(self._looks) * tokens_per_request
        return Figure("energy_mj_per_token", (end.energy_mj - start.energy_mj) / tokens)

    def _violation_shares(self) -> dict[str, float | None]:
        """Violation shares by field name of ``GpuConditions``; empty if no request was timed."""
        if len(self._counters) < 2:  # noqa: PLR2004  # a start and an end
            return {}
        start, end = self._counters
        seconds = end.moment_s - start.moment_s
        return {
            f"{name}_violation_share": violation_share(start.violations, end.violations, name, seconds)
            for name in start.violations
        }

    def _counters_now(self) -> Counters:
        mj = ask_nvml(self._nvml, lambda: self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._gpu))
        return Counters(mj, violations(self._nvml, self._gpu), time.monotonic())

    def _temperature_c(self) -> Any:
        return ask_nvml(
            self._nvml, lambda: self._nvml.nvmlDeviceGetTemperature(self._gpu, self._nvml.NVML_TEMPERATURE_GPU)
        )


class UnreadableGpu:
    """A GPU that NVML cannot read."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def begin(self) -> None:
        """Do nothing: there is nothing to read."""

    look = end = begin

    def conditions(self) -> GpuConditions:
        """Conditions without values, and the reason."""
        return GpuConditions(nvml_reason=self._reason)

    def energy(self, tokens_per_request: int) -> Figure:  # noqa: ARG002  # same signature as GpuWatch
        """A figure without a value, and the reason."""
        return _no_energy(self._reason)


@contextmanager
def watch_gpu(device: str) -> Iterator[GpuWatch | UnreadableGpu]:
    """Monitor a CUDA device; NVML stays initialized in the block, so readings do not initialize it each time."""
    with ExitStack() as stack:
        try:
            nvml, handle = stack.enter_context(nvml_handle(device))
        except NvmlUnavailableError as error:
            yield UnreadableGpu(str(error))
            return
        yield GpuWatch(device, nvml, handle)


def full_sm_clock_mhz(nvml: Any, gpu: Any) -> int | None:
    """The highest SM clock a GPU may run at, in MHz: its maximum, or an application clock set below it.

    NVML reports the application clock of the graphics domain, which is the SM clock as well.
    """
    most = ask_nvml(nvml, lambda: nvml.nvmlDeviceGetMaxClockInfo(gpu, nvml.NVML_CLOCK_SM))
    chosen = ask_nvml(nvml, lambda: nvml.nvmlDeviceGetApplicationsClock(gpu, nvml.NVML_CLOCK_GRAPHICS))
    return min((mhz for mhz in (most, chosen) if mhz), default=None)


def other_processes(nvml: Any, handle: Any) -> int | None:
    """Number of other processes that compute on a device; ``None`` where the driver hides processes.

    This process has a context on the device, so an empty list means that processes are hidden. Processes of this run
    are not counted: one that waits for this one keeps its context until it ends. In a container, NVML may list the
    host's process ids, which match none of ours. Then this process, its descendants and its parents that use the device
    are subtracted from the count. Processes that only draw graphics are not counted.
    """
    questions = nvml.nvmlDeviceGetComputeRunningProcesses, nvml.nvmlDeviceGetMPSComputeRunningProcesses
    told = [ask_nvml(nvml, lambda ask=ask: ask(handle)) or [] for ask in questions]
    found = {process.pid for processes in told for process in processes}
    if not found:
        return None
    if os.getpid() in found:
        return len(found - run_process_ids())
    return max(0, len(found) - len(own_processes()) - USERS_ABOVE)


def _held_back(looks: Sequence[ClockState]) -> str | None:
    told = [look.throttle_reasons for look in looks if look.throttle_reasons is not None]
    return " ".join(sorted({reason for reasons in told for reason in reasons} - {"GpuIdle"})) if told else None


def _median(readings: Sequence[int | None]) -> float | None:
    told = [reading for reading in readings if reading is not None]
    return median(told) if told else None


def _no_energy(reason: str) -> Figure:
    return Figure("energy_mj_per_token", None, reason)
