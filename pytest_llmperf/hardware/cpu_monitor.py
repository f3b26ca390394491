"""CPU conditions during a measurement: load average, clock, and CPU time taken by other processes."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import psutil

SHORTEST_TOLD_S = 0.2
"""Shortest processor time, in seconds, to compute a share of. Systems count in ticks of 10 ms, which is 5 % of it."""

_BUSY = ("user", "nice", "system", "irq", "softirq", "steal")


@dataclass(frozen=True, kw_only=True)
class HostConditions:
    """CPU conditions; ``None`` where the system does not report a value or the interval was too short."""

    load_average_before: float | None
    """Load average of the last minute, this process included."""
    load_average_after: float | None
    cpu_clock_before_mhz: float | None
    """Mean over all processors. Idle ones may clock lower, and a virtual machine may report its nominal clock."""
    cpu_clock_after_mhz: float | None
    other_processes_cpu_share: float | None
    """Share of the available processors' time that other processes took while requests were timed."""


@dataclass(frozen=True)
class ProcessorTime:
    """Cumulative seconds of the processors available to this process."""

    passed: float
    """Elapsed time, summed over these processors."""
    busy: float
    """Time not idle, including time stolen by a hypervisor."""
    own: float
    """CPU time of this process and its children."""


class HostWatch:
    """Reads the host from creation until ``conditions`` is called."""

    def __init__(self) -> None:
        self._before = load_average(), cpu_clock_mhz()
        self._start: ProcessorTime | None = None
        self._end: ProcessorTime | None = None

    def begin(self) -> None:
        """Start of the timed requests."""
        self._start = processor_time()

    def end(self) -> None:
        """End of the timed requests."""
        self._end = processor_time()

    def conditions(self) -> HostConditions:
        """Return the earlier readings and take the last ones."""
        load_before, clock_before = self._before
        return HostConditions(
            load_average_before=load_before,
            load_average_after=load_average(),
            cpu_clock_before_mhz=clock_before,
            cpu_clock_after_mhz=cpu_clock_mhz(),
            other_processes_cpu_share=others_share(self._start, self._end),
        )


def others_share(start: ProcessorTime | None, end: ProcessorTime | None) -> float | None:
    """Other processes' share of CPU time between two moments; ``None`` if the interval is too short."""
    if start is None or end is None or end.passed - start.passed < SHORTEST_TOLD_S:
        return None
    others = (end.busy - start.busy) - (end.own - start.own)
    return round(max(0.0, others / (end.passed - start.passed)), 3)


def processor_time() -> ProcessorTime:
    """Read the cumulative processor times now."""
    processors = psutil.cpu_times(percpu=True)
    if hasattr(os, "sched_getaffinity"):
        processors = [processors[number] for number in os.sched_getaffinity(0) if number < len(processors)]
    busy = sum(getattr(times, name, 0.0) for times in processors for name in _BUSY)
    return ProcessorTime(len(processors) * time.monotonic(), busy, _own_s())


def own_processes() -> list[psutil.Process]:
    """This process and all its descendants."""
    process = psutil.Process()
    return [process, *process.children(recursive=True)]


def load_average() -> float | None:
    """Load average of the last minute; ``None`` where the system has none."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def cpu_clock_mhz() -> float | None:
    """Mean clock of the processors, in MHz; ``None`` where a virtual machine or container hides it."""
    try:
        found = psutil.cpu_freq()
    except (OSError, NotImplementedError, RuntimeError):
        return None
    return round(found.current) if found and found.current else None


def _own_s() -> float:
    """CPU seconds of this process, in nanosecond resolution, and of its live or reaped children, in ticks."""
    ended = os.times()
    own = time.process_time() + ended.children_user + ended.children_system
    for child in own_processes()[1:]:
        try:
            times = child.cpu_times()
        except psutil.Error:  # the child has just exited
            continue
        own += times.user + times.system
    return own
