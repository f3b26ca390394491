"""Peak memory by phase: allocated and reserved on the device, and resident (RSS) on the host."""

from __future__ import annotations

import contextlib
import gc
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pytest_llmperf.hardware.cublas_workspaces import clear_workspaces
from pytest_llmperf.hardware.profiler import mark, profiler, recording_no_operators
from pytest_llmperf.system.tensors import is_without_values, storage_bytes


@dataclass
class PeakMemory:
    """Peak memory of one phase, in bytes; ``None`` where it cannot be read, and ``reason`` says why."""

    allocated_bytes: int | None = None
    reserved_bytes: int | None = None
    rss_bytes: int | None = None
    reason: str = ""


class _DeviceTrace(Protocol):
    """Allocated and reserved peaks by phase; ``enter`` begins a phase and ``close`` ends the last one."""

    def enter(self) -> None:
        """End the current phase and begin the next."""

    def close(self) -> list[tuple[int | None, int | None]]:
        """Return the allocated and reserved peak of each phase."""

    reason: str
    """Why a peak is ``None``."""


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error means out of memory, on the host or a device. torch raises several types for it."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error).lower() for words in ("out of memory", "can't allocate memory", "not enough memory")
    )


class MemoryTrace:
    """Consecutive phases and their peaks; ``peaks`` is filled by ``close``."""

    def __init__(self, device: _DeviceTrace) -> None:
        self._device = device
        self._resident = _ResidentSet()
        self._names: list[str] = []
        self._rss: list[int | None] = []
        self.peaks: dict[str, PeakMemory] = {}

    def enter(self, phase: str) -> None:
        """End the current phase, if any, and begin this one."""
        self._end_phase()
        self._names.append(phase)
        self._device.enter()
        self._resident.reset()

    def close(self) -> None:
        """End the last phase and fill ``peaks``."""
        self._end_phase()
        reason = "; ".join(filter(None, (self._device.reason, self._resident.reason)))
        for name, (allocated, reserved), rss in zip(self._names, self._device.close(), self._rss, strict=True):
            self.peaks[name] = PeakMemory(allocated, reserved, rss, reason)

    def _end_phase(self) -> None:
        if self._names:
            self._rss.append(self._resident.peak_bytes())


class Untraced:
    """In place of a `MemoryTrace` where no memory is traced."""

    def __init__(self) -> None:
        self.peaks: dict[str, PeakMemory] = {}

    def enter(self, phase: str) -> None:
        """Do nothing."""


@contextlib.contextmanager
def trace_memory(device: str, phase: str) -> Iterator[MemoryTrace]:
    """Trace peak memory in the block, starting with ``phase``; ``peaks`` is filled when the block ends.

    Tracing costs time (on a CPU it records every allocation), so do not time anything in the block. cuBLAS workspaces
    are cleared first, so only those that the block needs are counted.
    """
    clear_workspaces()
    trace = MemoryTrace(_device_trace(device, phase))
    trace.enter(phase)
    try:
        yield trace
    except BaseException:
        with contextlib.suppress(Exception):  # a phase may be half entered; the original error matters more
            trace.close()
        raise
    trace.close()


_UNREADABLE_ON_CPU = {
    "load": "on a CPU, loading maps files into memory: see the RSS peak",
    "serving": "on a CPU, only one thread's allocations are recorded, and serving uses another thread",
}


def _device_trace(device: str, phase: str) -> _DeviceTrace:
    if device == "cpu":
        if phase in _UNREADABLE_ON_CPU:
            return _Unreadable(_UNREADABLE_ON_CPU[phase])
        return _RecordedAllocations()
    import torch

    module: Any = getattr(torch, torch.device(device).type)
    if not hasattr(module, "reset_peak_memory_stats"):
        return _Unreadable(f"{module.__name__} does not record peaks")
    return _CachingAllocator(module, device)


class _Unreadable:
    """A device whose memory peaks cannot be read."""

    def __init__(self, reason: str) -> None:
        self.reason = f"device peaks: {reason}"
        self._phases = 0

    def enter(self) -> None:
        self._phases += 1

    def close(self) -> list[tuple[int | None, int | None]]:
        return [(None, None)] * self._phases


class _CachingAllocator:
    """Statistics of torch's caching allocator, for CUDA and XPU. They include the memory pools of CUDA graphs."""

    reason = ""

    def __init__(self, module: Any, device: str) -> None:
        self._module = module
        self._device = device
        self._peaks: list[tuple[int | None, int | None]] = []
        self._open = False

    def enter(self) -> None:
        self._end_phase()
        if not self._open:
            self._module.empty_cache()  # keep earlier cached blocks out of the reserved peak
        self._module.reset_peak_memory_stats(self._device)
        self._open = True

    def close(self) -> list[tuple[int | None, int | None]]:
        self._end_phase()
        return self._peaks

    def _end_phase(self) -> None:
        self._module.synchronize(self._device)
        if self._open:
            allocated = self._module.max_memory_allocated(self._device)
            self._peaks.append((allocated, self._module.max_memory_reserved(self._device)))


class _RecordedAllocations:
    """Allocations of torch's CPU allocator, recorded by its profiler, plus the tensors alive at the start.

    The CPU allocator has no peak statistics. This peak is exact and identical between identical runs, unlike the RSS.
    Memory that torch did not allocate appears only in the RSS.
    """

    reason = "reserved: the CPU allocator has no memory pool"

    def __init__(self) -> None:
        self._base = live_tensor_bytes()
        self._profile = profiler(profile_memory=True)
        self._phases = 0

    def enter(self) -> None:
        if not self._phases:
            with recording_no_operators():
                self._profile.__enter__()
        mark(_PHASE_MARK)
        self._phases += 1

    def close(self) -> list[tuple[int | None, int | None]]:
        self._profile.__exit__(None, None, None)
        recorded = self._profile.kineto_results.events()
        events = [event for event in recorded if event.name() in (_PHASE_MARK, _MEMORY_EVENT)]
        events.sort(key=lambda event: event.start_ns())
        return [(peak, None) for peak in _peaks_of(events, self._base, self._phases)]


_PHASE_MARK = "llmperf phase"
_MEMORY_EVENT = "[memory]"


def _peaks_of(events: list[Any], base: int, phases: int) -> list[int]:
    """Peak bytes alive in each phase. A mark begins a phase, which starts with the bytes alive at that point."""
    alive, peaks = base, []
    for event in events:
        if event.name() == _PHASE_MARK:
            peaks.append(alive)
        elif peaks:
            alive += event.nbytes()
            peaks[-1] = max(peaks[-1], alive)
    if len(peaks) != phases:
        raise RuntimeError(f"torch's profiler recorded {len(peaks)} of {phases} phases")
    return peaks


def live_tensor_bytes() -> int:
    """Bytes of CPU tensors that Python created since the first model was loaded, counting each storage once."""
    import torch

    # Not isinstance: it reads the class of lazy objects, which triggers their deprecation warnings.
    found = (thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor))
    return storage_bytes(tensor for tensor in found if tensor.device.type == "cpu" and not is_without_values(tensor))


class _ResidentSet:
    """The process's peak RSS, where the kernel allows resetting it (Linux)."""

    _CLEAR = Path("/proc/self/clear_refs")
    _STATUS = Path("/proc/self/status")

    def __init__(self) -> None:
        self.reason = ""

    def reset(self) -> None:
        try:
            self._CLEAR.write_text("5", encoding="ascii")
        except OSError:
            self.reason = "RSS: this system cannot reset the peak"

    def peak_bytes(self) -> int | None:
        if self.reason:
            return None
        found = re.search(r"^VmHWM:\s+(\d+) kB$", self._STATUS.read_text(encoding="ascii"), re.MULTILINE)
        return int(found[1]) * 1024 if found else None
