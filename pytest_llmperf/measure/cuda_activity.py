"""Kernel launches, synchronizations and device busy time of decode, from profiled requests (CUPTI)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pytest_llmperf.engines.executions.execution import OnToken
from pytest_llmperf.hardware.clock import NS_PER_MS, Clock
from pytest_llmperf.hardware.profiler import mark, profiler
from pytest_llmperf.metrics import NO_DECODE, SEVERAL_AT_A_TIME, Figure
from pytest_llmperf.text import first_line

FIGURES = ("kernel_launches_per_token", "syncs_per_token", "host_share")

DECODE_MARK, END_MARK = "llmperf decode", "llmperf end"

FIRST_CLEAN_CUDA = (12, 6)
"""First CUDA version whose profiling library can be detached while graphs exist. With earlier ones, later measurements
are 10 to 20 % slower (pytorch/pytorch#146604)."""

MOST_TOKENS = 17
"""Most output tokens of a profiled request. Sixteen steps suffice; a profile of a thousand takes minutes and gigabytes.
"""

_WAITS = re.compile(r"cuda(Stream|Device|Event)Synchronize|cudaMemcpy(2D|3D)?|cudaMemcpy(To|From)Symbol")
"""Calls that block until the device is done; copies that need not wait are called ``cudaMemcpyAsync``."""
_LAUNCHES = re.compile(r"cu(da)?(LaunchKernel|LaunchCooperativeKernel|GraphLaunch)\w*")
"""Launch calls of the CUDA runtime, and of the driver, which triton uses. A graph replay is one launch of all its
kernels."""
_CUDA_CALL = re.compile(r"cu(da)?[A-Z]\w*")
"""Any CUDA call. Torch's operators have correlation ids of their own."""
_NO_KERNELS = ("Memcpy", "Memset")


@dataclass(frozen=True)
class ProfiledEvent:
    """One event of a profile; times are in nanoseconds."""

    name: str
    on_device: bool
    start_ns: int
    end_ns: int
    correlation: int = 0
    """Id shared by a host call and the device work that it launched."""

    @property
    def is_kernel(self) -> bool:
        """Whether this is a kernel on the device, not a copy or a memset."""
        return self.on_device and not self.name.startswith(_NO_KERNELS)

    @property
    def is_launch(self) -> bool:
        """Whether this is a host call that launches a kernel or a graph."""
        return not self.on_device and _LAUNCHES.fullmatch(self.name) is not None


@dataclass(frozen=True)
class Activity:
    """Device activity between the two marks of a profile."""

    kernels: int
    """Kernels of a graph replay are counted individually."""
    syncs: int
    busy_ms: float
    """Time during which at least one kernel or copy ran."""


def activity_of(events: Iterable[ProfiledEvent]) -> Activity:
    """Compute the activity of a decode from profile events.

    Host calls count between the two marks. The device is idle at the first mark and afterwards runs only the decode, so
    its work counts from there even where the host ran ahead.

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
    kernels = [event for event in work if event.is_kernel]
    _check_launches(calls, kernels)
    return Activity(
        kernels=len(kernels),
        syncs=sum(_WAITS.fullmatch(event.name) is not None for event in calls),
        busy_ms=_union_ns(work) / NS_PER_MS,
    )


def _check_launches(calls: Sequence[ProfiledEvent], kernels: Sequence[ProfiledEvent]) -> None:
    launches = {event.correlation for event in calls if event.is_launch}
    lost = launches - {event.correlation for event in kernels}
    if lost:
        raise ValueError(f"{len(lost)} of {len(launches)} launches have no kernel in the profile")
    known = {event.correlation for event in calls if _CUDA_CALL.fullmatch(event.name)}
    stray = sum(event.correlation not in known for event in kernels)
    if stray:
        raise ValueError(f"{stray} of {len(kernels)} kernels in the profile have no launch")


def activity_figures(  # noqa: PLR0913  # a request, its device, and a time to compare with
    request: Callable[[int, OnToken], object],
    *,
    other: Callable[[int, OnToken], object] | None = None,
    output_tokens: int,
    tpot_ms: float | None,
    device: str,
    clock: Clock,
    enter: Callable[[str], None],
) -> list[Figure]:
    """Kernels and synchronizations per token, and the host's share of a step; empty except on CUDA.

    Two requests are profiled. CUPTI loses records (pytorch/pytorch#192021, pytorch/kineto#1165): a count is valid if
    each launch has its records and both requests agree.

    Args:
        request: makes one request with a number of output tokens, already warmed up, and calls its second argument with
            the tokens that came.
        other: makes the second request, with another prompt, if the work may depend on the prompt.
        output_tokens: output tokens of the timed requests; at most `MOST_TOKENS` are profiled.
        tpot_ms: TPOT of the timed requests, because profiling slows the host but not the device.
        device: the torch device.
        clock: the device's clock.
        enter: called with the phase.
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
        recorded = [_profile(partial(one, tokens), clock) for one in (request, other or request)]
        profiles = [activity_of(events) for events, _ in recorded]
    except (RuntimeError, ValueError) as error:
        return _none(f"torch's profiler: {first_line(error)}")
    later = tokens - recorded[0][1]
    requests = "requests with two prompts" if other else "identical requests"
    if reason := _why_not_counted(profiles, requests) or ("" if later else SEVERAL_AT_A_TIME):
        return _none(reason)
    busy_ms = sum(found.busy_ms for found in profiles) / len(profiles)
    host_share = max(0.0, 1 - busy_ms / later / tpot_ms)
    values = (profiles[0].kernels / later, profiles[0].syncs / later, host_share)
    return [Figure(metric, value) for metric, value in zip(FIGURES, values, strict=True)]


def _why_not_counted(profiles: Sequence[Activity], requests: str) -> str:
    """Why the profiles give no counts; empty if they agree and contain kernels."""
    for name in ("kernels", "syncs"):
        counts = [getattr(found, name) for found in profiles]
        if len(set(counts)) > 1:
            return f"torch's profiler: {requests} have {' and '.join(map(str, counts))} {name}"
    return "" if profiles[0].kernels else "torch's profiler recorded no kernel: is this process allowed to use CUPTI?"


def _profile(run: Callable[[OnToken], object], clock: Clock) -> tuple[Sequence[ProfiledEvent], int]:
    """Events of a profiled request, and the tokens that came first, before the decode."""
    os.environ.setdefault("TEARDOWN_CUPTI", "1")  # not the default of every version: see FIRST_CLEAN_CUDA
    first = 0

    def on_token(count: int = 1, /) -> None:
        nonlocal first
        if not first:
            first = count
            clock.synchronize()  # wait for the prefill to finish
            mark(DECODE_MARK)

    profile = profiler(use_device="cuda")
    with profile:
        run(on_token)
        mark(END_MARK)
        clock.synchronize()
    return events_of(profile.kineto_results.events()), first


def events_of(recorded: Iterable[Any]) -> list[ProfiledEvent]:
    """Convert kineto events, without the device's copies of host annotations, which are no work."""
    from torch._C._autograd import DeviceType  # as in torch's own profiler

    found = ((event, event.device_type() != DeviceType.CPU) for event in recorded)
    return [
        ProfiledEvent(event.name(), on_device, event.start_ns(), event.end_ns(), event.correlation_id())
        for event, on_device in found
        if not (on_device and event.is_user_annotation())
    ]


def _union_ns(events: Sequence[ProfiledEvent]) -> int:
    """Time covered by events sorted by start; events of several streams may overlap."""
    covered, until = 0, 0
    for event in events:
        covered += max(0, event.end_ns - max(event.start_ns, until))
        until = max(until, event.end_ns)
    return covered


def _why_not() -> str:
    import torch

    version = torch.version.cuda
    if version is None:
        return "torch was built without CUDA: other profilers may slow down later measurements"
    if tuple(int(part) for part in version.split(".")[:2]) < FIRST_CLEAN_CUDA:
        return f"CUDA {version}: profiling would slow down later measurements; expected 12.6 or later"
    return ""


def _none(reason: str) -> list[Figure]:
    return [Figure(metric, None, reason) for metric in FIGURES]
