"""What the host was like around a measurement: its load and clock before and after, and what others took meanwhile."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import psutil

SHORTEST_TOLD_S = 0.2
"""Systems count in ticks of 10 ms: over less time, a tick is more than 5 % of a processor."""

_BUSY = ("user", "nice", "system", "irq", "softirq", "steal")


@dataclass(frozen=True, kw_only=True)
class HostConditions:
    """``None`` where the system does not tell, or not in so short a time."""

    load_average_before: float | None
    """Of the last minute, this process included."""
    load_average_after: float | None
    cpu_clock_before_mhz: float | None
    """The mean of all processors: idle ones may clock lower, and a virtual machine may tell what it was sold as."""
    cpu_clock_after_mhz: float | None
    other_processes_cpu_share: float | None
    """What others took, while requests were timed, of the time of the processors that this process may use."""


@dataclass(frozen=True)
class ProcessorTime:
    """Seconds until a moment, of the processors that this process may use."""

    passed: float
    """On all of them together."""
    busy: float
    """Of these, not idle; where a hypervisor had the processor, it was busy."""
    own: float
    """Of these, taken by this process and its children."""


class HostWatch:
    """Reads the host from its making until ``conditions`` is asked for."""

    def __init__(self) -> None:
        self._before = load_average(), cpu_clock_mhz()
        self._start: ProcessorTime | None = None
        self._end: ProcessorTime | None = None

    def begin(self) -> None:
        """Requests are timed from here."""
        self._start = processor_time()

    def end(self) -> None:
        """Until here."""
        self._end = processor_time()

    def conditions(self) -> HostConditions:
        """What was read, and what is read now."""
        load_before, clock_before = self._before
        return HostConditions(
            load_average_before=load_before,
            load_average_after=load_average(),
            cpu_clock_before_mhz=clock_before,
            cpu_clock_after_mhz=cpu_clock_mhz(),
            other_processes_cpu_share=others_share(self._start, self._end),
        )


def others_share(start: ProcessorTime | None, end: ProcessorTime | None) -> float | None:
    """The share of the processors' time between two moments that went to others; ``None`` if too little passed."""
    if start is None or end is None or end.passed - start.passed < SHORTEST_TOLD_S:
        return None
    others = (end.busy - start.busy) - (end.own - start.own)
    return round(max(0.0, others / (end.passed - start.passed)), 3)


def processor_time() -> ProcessorTime:
    """The present moment."""
    processors = psutil.cpu_times(percpu=True)
    if hasattr(os, "sched_getaffinity"):
        processors = [processors[number] for number in os.sched_getaffinity(0) if number < len(processors)]
    busy = sum(getattr(times, name, 0.0) for times in processors for name in _BUSY)
    return ProcessorTime(len(processors) * time.monotonic(), busy, _own_s())


def own_processes() -> list[psutil.Process]:
    """This process and all that it started."""
    process = psutil.Process()
    return [process, *process.children(recursive=True)]


def load_average() -> float | None:
    """Processes that run or wait to, averaged over the last minute; some systems have none."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def cpu_clock_mhz() -> float | None:
    """The processors' mean clock; virtual machines and containers may hide it."""
    try:
        found = psutil.cpu_freq()
    except (OSError, NotImplementedError, RuntimeError):
        return None
    return round(found.current) if found and found.current else None


def _own_s() -> float:
    """Of this process to the nanosecond; of its children, living or waited for, in ticks."""
    ended = os.times()
    own = time.process_time() + ended.children_user + ended.children_system
    for child in own_processes()[1:]:
        try:
            times = child.cpu_times()
        except psutil.Error:  # it has just ended
            continue
        own += times.user + times.system
    return own
