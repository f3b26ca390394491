"""Kernels, synchronizations and busy time, from synthetic profile events."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from pytest_llmperf.hardware.clock import HostClock
from pytest_llmperf.hardware.profiler import profiler
from pytest_llmperf.measure import cuda_activity
from pytest_llmperf.measure.cuda_activity import (
    DECODE_MARK,
    END_MARK,
    Activity,
    ProfiledEvent,
    activity_figures,
    activity_of,
)

MS = 1_000_000


def host(name, at_ms, took_ms=0.001, *, correlation=0):
    return ProfiledEvent(name, False, int(at_ms * MS), int((at_ms + took_ms) * MS), correlation)


def device(name, at_ms, took_ms, *, correlation=1):
    return ProfiledEvent(name, True, int(at_ms * MS), int((at_ms + took_ms) * MS), correlation)


LAUNCH = host("cudaGraphLaunch", 10.1, correlation=1)
"""Of all kernels whose own launch does not matter."""
MARKS = [host(DECODE_MARK, 10), host(END_MARK, 20)]


def test_a_decode_lies_between_the_marks():
    """The prefill's work is excluded; device work that outlasts the host's calls is included."""
    events = [
        device("gemm", 5, 3),
        host("cudaDeviceSynchronize", 9),
        device("gemm", 11, 2),
        host("cudaStreamSynchronize", 14),
        device("softmax", 20.5, 1),
        host("cudaDeviceSynchronize", 21),
    ]
    assert activity_of([*reversed(events), LAUNCH, *MARKS]) == Activity(kernels=2, syncs=1, busy_ms=3.0)


@pytest.mark.parametrize(
    ("name", "waits"),
    [
        ("cudaStreamSynchronize", 1),
        ("cudaDeviceSynchronize", 1),
        ("cudaEventSynchronize", 1),
        ("cudaMemcpy", 1),
        ("cudaMemcpy2D", 1),
        ("cudaMemcpyFromSymbol", 1),
        ("cudaMemcpyAsync", 0),
        ("cudaStreamWaitEvent", 0),
        ("cudaLaunchKernel", 0),
        ("cudaEventQuery", 0),
        ("aten::item", 0),
    ],
)
def test_calls_that_wait(name, waits):
    """A stream that waits for another does not block the host."""
    assert activity_of([host(name, 12, correlation=1), device("gemm", 13, 1), LAUNCH, *MARKS]).syncs == waits


def test_copies_keep_the_device_busy_and_are_no_kernels():
    """Neither are memsets."""
    events = [device("Memcpy DtoH (Device -> Pageable)", 11, 1), device("Memset (Device)", 12, 1), device("add", 13, 1)]
    assert activity_of([*events, LAUNCH, *MARKS]) == Activity(kernels=1, syncs=0, busy_ms=3.0)


def test_streams_that_overlap_are_busy_once():
    """Busy time is the union of intervals, nested ones included."""
    events = [device("a", 11, 4), device("b", 12, 1), device("c", 14, 2), device("d", 18, 1)]
    assert activity_of([*events, LAUNCH, *MARKS]).busy_ms == 6.0


LAUNCH_NAMES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernelEx", "cudaGraphLaunch_v10000")
LAUNCHES = [host(name, 10 + number, correlation=number) for number, name in enumerate(LAUNCH_NAMES, start=1)]
KERNELS = [device("gemm", at, 0.5, correlation=number) for number, at in [(1, 11), (2, 12), (3, 13), (4, 14), (4, 15)]]


def test_kernels_that_match_their_launches_are_counted():
    """A graph's kernels share one launch; copies and synchronizations launch none."""
    others = [host("cudaMemcpyAsync", 16, correlation=9), device("Memcpy DtoH", 16, 1, correlation=9)]
    assert activity_of([*LAUNCHES, *KERNELS, *others, *MARKS]).kernels == 5


@pytest.mark.parametrize(
    ("lost", "reason"),
    [
        (KERNELS[0], "1 of 4 launches have no kernel in the profile"),
        (KERNELS[2], "1 of 4 launches have no kernel in the profile"),
        (LAUNCHES[1], "1 of 5 kernels in the profile have no launch"),
        (LAUNCHES[3], "2 of 5 kernels in the profile have no launch"),
    ],
)
def test_a_profile_that_lost_records_is_refused(lost, reason):
    """CUPTI loses some; a torch operator with the same id is no launch."""
    events = [event for event in [*LAUNCHES, *KERNELS] if event is not lost]
    operators = [host("aten::mm", 11, correlation=number) for number in range(1, 5)]
    with pytest.raises(ValueError, match=f"^{reason}$"):
        activity_of([*events, *operators, *MARKS])


@pytest.mark.parametrize("events", [[], MARKS[:1], MARKS[1:], MARKS[::-1] + MARKS])
def test_a_profile_without_its_marks_is_refused(events):
    """The decode cannot be located."""
    with pytest.raises(ValueError, match="of 2 marks"):
        activity_of(events)


def recorded(name, kind, *, annotation=False):
    values = {"name": name, "device_type": kind, "start_ns": 1, "end_ns": 2, "is_user_annotation": annotation}
    values["correlation_id"] = 3
    return SimpleNamespace(**{key: lambda value=value: value for key, value in values.items()})


def test_the_echo_of_an_annotation_on_the_device_is_no_work():
    """The profiler of torch records such copies."""
    from torch._C._autograd import DeviceType

    events = [
        recorded(DECODE_MARK, DeviceType.CPU, annotation=True),
        recorded("Torch-Compiled Region", DeviceType.CUDA, annotation=True),
        recorded("gemm", DeviceType.CUDA),
    ]
    assert cuda_activity.events_of(events) == [
        ProfiledEvent(DECODE_MARK, False, 1, 2, 3),
        ProfiledEvent("gemm", True, 1, 2, 3),
    ]


@pytest.fixture
def figures(monkeypatch):
    """Figures of a request of 5 tokens at 4 ms each, with the given profile."""

    def of(profile, *, version="12.8", **changes):
        monkeypatch.setattr(torch.version, "cuda", version)
        monkeypatch.setattr(cuda_activity, "_profile", lambda run, clock: (profile(), 1))
        base = {
            "output_tokens": 5,
            "tpot_ms": 4.0,
            "device": "cuda:0",
            "clock": HostClock(),
            "enter": lambda phase: None,
        }
        return activity_figures(lambda tokens, on_token: None, **base | changes)

    return of


def test_counts_are_by_token_and_the_host_has_what_the_device_does_not(figures):
    """The step time is that of timed requests, because profiling slows the host."""
    events = [device("gemm", at, 1.0) for at in range(11, 19)] + [host("cudaStreamSynchronize", at) for at in (12, 15)]
    found = figures(lambda: [*events, LAUNCH, *MARKS])
    assert {figure.metric: figure.value for figure in found} == {
        "kernel_launches_per_token": 2.0,
        "syncs_per_token": 0.5,
        "host_share": 0.5,
    }


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ([device("add", 12, 1)], "torch's profiler: identical requests have 2 and 3 kernels"),
        ([host("cudaStreamSynchronize", 12)], "torch's profiler: identical requests have 1 and 2 syncs"),
    ],
)
def test_requests_alike_that_do_not_agree_tell_nothing(figures, more, reason):
    """A count that does not repeat cannot be compared exactly."""
    events = [device("gemm", 11, 1), device("gemm", 12, 1), host("cudaStreamSynchronize", 14), LAUNCH, *MARKS]
    profiles = iter([events, [*events, *more]])
    found = figures(lambda: next(profiles))
    assert [(figure.value, figure.reason) for figure in found] == [(None, reason)] * 3


def test_the_second_request_may_have_another_prompt(figures, monkeypatch):
    """The work of a mixture of experts may depend on it."""
    made, events = [], [device("gemm", 11, 1), device("gemm", 12, 1), LAUNCH, *MARKS]
    profiles = iter([events, [*events, device("add", 12, 1)]])
    found = figures(lambda: next(profiles), other=lambda tokens, on_token: made.append(tokens))
    assert {figure.reason for figure in found} == {"torch's profiler: requests with two prompts have 2 and 3 kernels"}
    monkeypatch.setattr(cuda_activity, "_profile", lambda run, clock: (run(lambda: None) or events, 1))
    activity_figures(
        lambda tokens, on_token: made.append("first"), other=lambda tokens, on_token: made.append("second"),
        output_tokens=5, tpot_ms=4.0, device="cuda:0", clock=HostClock(), enter=lambda phase: None,
    )  # fmt: skip
    assert made == ["first", "second"]


def test_a_device_that_is_never_idle_leaves_the_host_nothing(figures):
    """Two clocks may differ slightly; the share is never below 0."""
    assert figures(lambda: [device("gemm", 10.5, 9), LAUNCH, *MARKS], tpot_ms=2.0)[2].value == 0.0


def test_of_a_long_request_the_first_steps_are_profiled(figures):
    """At most sixteen steps."""
    events = [device("gemm", at / 4, 0.25) for at in range(41, 73)]
    assert figures(lambda: [*events, LAUNCH, *MARKS], output_tokens=1000)[0].value == 2.0


def test_other_devices_have_no_such_figures(figures):
    """Not even figures without a value."""
    assert figures(lambda: 1 / 0, device="cpu") == figures(lambda: 1 / 0, device="xpu:0") == []


def fail():
    raise RuntimeError("CUPTI_ERROR_NOT_INITIALIZED\nmore")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"profile": fail}, "torch's profiler: CUPTI_ERROR_NOT_INITIALIZED"),
        ({"profile": list}, "torch's profiler: the profile has 0 of 2 marks"),
        ({"profile": lambda: MARKS}, "torch's profiler recorded no kernel: is this process allowed to use CUPTI?"),
        ({"profile": list, "tpot_ms": None}, "one output token has no decode: ask for two or more"),
        ({"profile": list, "version": "12.4"}, "CUDA 12.4: profiling would slow down later measurements"),
        ({"profile": list, "version": None}, "torch was built without CUDA"),
    ],
)
def test_what_cannot_be_read_is_none_with_a_reason(figures, arguments, reason):
    """All three figures; measuring continues."""
    found = figures(**arguments)
    assert [(figure.metric, figure.value) for figure in found] == [(metric, None) for metric in cuda_activity.FIGURES]
    assert all(figure.reason.startswith(reason) for figure in found)


def test_a_profile_of_the_host_has_both_marks(monkeypatch):
    """The first mark follows the first token, the last one the request, in torch's own profiler."""
    monkeypatch.setattr(cuda_activity, "profiler", lambda use_device: profiler())
    monkeypatch.setenv("TEARDOWN_CUPTI", "1")

    def run(on_token):
        for _ in range(3):
            torch.ones(1).add_(1)
            on_token()

    found, first = cuda_activity._profile(run, HostClock())
    assert first == 1
    assert {event.correlation for event in found} != {0}
    assert activity_of(found) == Activity(kernels=0, syncs=0, busy_ms=0.0)
    mark = next(event for event in found if event.name == DECODE_MARK)
    assert [event.start_ns < mark.start_ns for event in found if event.name == "aten::add_"] == [True, False, False]
