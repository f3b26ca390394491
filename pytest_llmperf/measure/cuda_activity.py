"""What a decode makes the device do, from profiled requests: kernels, waits for the device, and its busy time."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pytest_llmperf.hardware.clock import NS_PER_MS, Clock
from pytest_llmperf.hardware.profiler import mark, profiler
from pytest_llmperf.metrics import NO_DECODE, Figure
from pytest_llmperf.text import first_line

FIGURES = ("kernel_launches_per_token", "syncs_per_token", "host_share")

DECODE_MARK, END_MARK = "llmperf decode", "llmperf end"

FIRST_CLEAN_CUDA = (12, 6)
"""Before, CUDA's profiling library cannot be detached while there are graphs, and slows down what is measured next by
10 to 20 % (pytorch/pytorch#146604)."""

PROFILES = 2
"""Requests that are profiled. CUPTI loses records (pytorch/pytorch#192021, pytorch/kineto#1165): a count stands if each
launch has its records, and if both requests give it."""

MOST_TOKENS = 17
"""Sixteen steps tell what each does; a profile of a thousand takes minutes and gigabytes."""

_WAITS = re.compile(r"cuda(Stream|Device|Event)Synchronize|cudaMemcpy(2D|3D)?|cudaMemcpy(To|From)Symbol")
"""Calls that return when the device is done; copies that need not wait are called ``cudaMemcpyAsync``."""
_LAUNCHES = re.compile(r"cu(da)?(LaunchKernel|LaunchCooperativeKernel|GraphLaunch)\w*")
"""Calls of the runtime, and of the driver as triton makes them. A replayed graph is one, with all of its kernels."""
_CUDA_CALL = re.compile(r"cu(da)?[A-Z]\w*")
"""Torch's operators have numbers of their own."""
_NO_KERNELS = ("Memcpy", "Memset")


@dataclass(frozen=True)
class ProfiledEvent:
    """One event of a profile, in nanoseconds."""

    name: str
    on_device: bool
    start_ns: int
    end_ns: int
    correlation: int = 0
    """What a call of the host and the work that it launched have in common."""


@dataclass(frozen=True)
class Activity:
    """What happened between the marks of a profile."""

    kernels: int
    """Those of a replayed graph are counted one by one."""
    syncs: int
    busy_ms: float
    """Time in which at least one kernel ran, or one copy."""


def activity_of(events: Iterable[ProfiledEvent]) -> Activity:
    """What happened in a decode.

    The host's calls count between the two marks. The device was idle at the first of them and does nothing that is not
    of the decode after it, so what begins there counts even where the host ran ahead.

    Raises:
        ValueError: there are not two marks, or kernels do not match the calls that launched them.
    """
    ordered = sorted(events, key=lambda event: event.start_ns)
    marks = [event for event in ordered if not event.on_device and event.name in (DECODE_MARK, END_MARK)]
    if [event.name for event in marks] != [DECODE_MARK, END_MARK]:
        raise ValueError(f"the profile has {len(marks)} of 2 marks")
    start, end = marks[0].end_ns, marks[1].start_ns
    work = [event for event in ordered if event.on_device and event.start_ns >= start]
    calls = [event for event in ordered if not event.on_device and start <= event.start_ns < end]
    kernels = [event for event in work if not event.name.startswith(_NO_KERNELS)]
    _check_launches(calls, kernels)
    return Activity(
        kernels=len(kernels),
        syncs=sum(_WAITS.fullmatch(event.name) is not None for event in calls),
        busy_ms=_union_ns(work) / NS_PER_MS,
    )


def _check_launches(calls: Sequence[ProfiledEvent], kernels: Sequence[ProfiledEvent]) -> None:
    launches = {event.correlation for event in calls if _LAUNCHES.fullmatch(event.name)}
    lost = launches - {event.correlation for event in kernels}
    if lost:
        raise ValueError(f"{len(lost)} of {len(launches)} launches have no kernel in the profile")
    known = {event.correlation for event in calls if _CUDA_CALL.fullmatch(event.name)}
    stray = sum(event.correlation not in known for event in kernels)
    if stray:
        raise ValueError(f"{stray} of {len(kernels)} kernels in the profile have no launch")


def activity_figures(  # noqa: PLR0913  # a request, its place, and what it is compared with
    request: Callable[[int, Callable[[], object]], object],
    *,
    output_tokens: int,
    tpot_ms: float | None,
    device: str,
    clock: Clock,
    enter: Callable[[str], None],
) -> list[Figure]:
    """Kernels and waits by token, and the host's share of a step. CUDA alone has them: elsewhere there is no figure.

    Args:
        request: makes one of so many tokens, warmed up, and calls what it is given for each.
        output_tokens: of the requests that were timed; the first of them are profiled.
        tpot_ms: of requests that were timed: a profile makes the host slower, and not the device.
        device: as torch names it.
        clock: of the device.
        enter: told of the phase.
    """
    if not device.startswith("cuda"):
        return []
    tokens = min(output_tokens, MOST_TOKENS)
    if tokens == 1 or tpot_ms is None:
        return _none(NO_DECODE)
    if reason := _why_not():
        return _none(reason)
    enter("profiled requests")
    try:
        profiles = [activity_of(_profile(partial(request, tokens), clock)) for _ in range(PROFILES)]
    except (RuntimeError, ValueError) as error:
        return _none(f"torch's profiler: {first_line(error)}")
    if reason := _why_not_counted(profiles):
        return _none(reason)
    steps = tokens - 1
    busy_ms = sum(found.busy_ms for found in profiles) / len(profiles)
    host_share = max(0.0, 1 - busy_ms / steps / tpot_ms)
    values = (profiles[0].kernels / steps, profiles[0].syncs / steps, host_share)
    return [Figure(metric, value) for metric, value in zip(FIGURES, values, strict=True)]


def _why_not_counted(profiles: Sequence[Activity]) -> str:
    """Why nothing can be told of requests that were profiled; empty if they saw the same, and something."""
    for name in ("kernels", "syncs"):
        counts = [getattr(found, name) for found in profiles]
        if len(set(counts)) > 1:
            return f"torch's profiler: requests alike have {' and '.join(map(str, counts))} {name}"
    return "" if profiles[0].kernels else "torch's profiler saw no kernel: may this process use CUPTI?"


def _profile(run: Callable[[Callable[[], object]], object], clock: Clock) -> Sequence[ProfiledEvent]:
    os.environ.setdefault("TEARDOWN_CUPTI", "1")  # not the default of every version: see FIRST_CLEAN_CUDA
    tokens = 0

    def on_token() -> None:
        nonlocal tokens
        tokens += 1
        if tokens == 1:
            clock.synchronize()  # the prefill is done
            mark(DECODE_MARK)

    profile = profiler(use_device="cuda")
    with profile:
        run(on_token)
        mark(END_MARK)
        clock.synchronize()
    return _events(profile.kineto_results.events())


def _events(recorded: Iterable[Any]) -> list[ProfiledEvent]:
    """Without the device's echo of what the host annotates, which is no work."""
    from torch._C._autograd import DeviceType  # where torch's own profiler has it from

    found = ((event, event.device_type() != DeviceType.CPU) for event in recorded)
    return [
        ProfiledEvent(event.name(), on_device, event.start_ns(), event.end_ns(), event.correlation_id())
        for event, on_device in found
        if not (on_device and event.is_user_annotation())
    ]


def _union_ns(events: Sequence[ProfiledEvent]) -> int:
    """Time covered by events that are ordered by their start; streams may overlap."""
    covered, until = 0, 0
    for event in events:
        covered += max(0, event.end_ns - max(event.start_ns, until))
        until = max(until, event.end_ns)
    return covered


def _why_not() -> str:
    import torch

    version = torch.version.cuda
    if version is None:
        return "torch was built without CUDA: only its profiler is known to leave nothing behind"
    if tuple(int(part) for part in version.split(".")[:2]) < FIRST_CLEAN_CUDA:
        return f"CUDA {version}: a profile would slow down what is measured next; expected 12.6 or later"
    return ""


def _none(reason: str) -> list[Figure]:
    return [Figure(metric, None, reason) for metric in FIGURES]
