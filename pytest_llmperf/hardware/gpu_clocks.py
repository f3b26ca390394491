"""Current GPU clocks and throttle reasons, from NVML."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pytest_llmperf.hardware.environment import NvmlUnavailableError, ask_nvml, nvml_handle, whole_gpu

_REASON = re.compile(r"nvmlClocks(?:Event|Throttle)Reason(?!All$|None$|UserDefinedClocks$)(\w+)")


@dataclass(frozen=True)
class ClockState:
    """Clocks in MHz and throttle reasons; ``None`` where unreadable, and ``reason`` says why."""

    sm_mhz: int | None = None
    memory_mhz: int | None = None
    throttle_reasons: tuple[str, ...] | None = None
    """NVML's names, such as ``SwPowerCap``; includes ``GpuIdle``."""
    reason: str = ""


def clock_state(device: str) -> ClockState:
    """Read the current clocks of a torch device. Only NVIDIA devices report them."""
    if not device.startswith("cuda"):
        return ClockState(reason=f"{device}: clocks are read from NVML, which supports only NVIDIA devices")
    try:
        with nvml_handle(device) as (nvml, handle):
            gpu = whole_gpu(nvml, handle)
            sm_mhz = ask_nvml(nvml, lambda: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM))
            memory_mhz = ask_nvml(nvml, lambda: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_MEM))
            mask = ask_nvml(nvml, lambda: nvml.nvmlDeviceGetCurrentClocksEventReasons(gpu))
            untold = (
                "the driver does not report all clocks and throttle reasons"
                if None in (sm_mhz, memory_mhz, mask)
                else ""
            )
            return ClockState(sm_mhz, memory_mhz, None if mask is None else _names(nvml, mask), untold)
    except NvmlUnavailableError as error:
        return ClockState(reason=str(error))


def _names(nvml: Any, mask: int) -> tuple[str, ...]:
    known = {found[1]: getattr(nvml, name) for name in dir(nvml) if (found := _REASON.fullmatch(name))}
    return tuple(sorted(name for name, bit in known.items() if bit & mask))
