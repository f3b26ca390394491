"""The kernel timer on the host and on a fake of torch.cuda; no test depends on speed."""

from __future__ import annotations

from functools import partial
from itertools import cycle, pairwise
from types import SimpleNamespace

import fake_cuda
import pytest
import torch
from fake_cuda import FakeCuda
from fake_nvml import FakeNvml

from pytest_llmperf.errors import MeasurementError, UsageError
from pytest_llmperf.hardware import gpu_clocks as clock_states
from pytest_llmperf.hardware import l2_cache
from pytest_llmperf.hardware.clock import EventClock, HostClock
from pytest_llmperf.hardware.environment import NvmlUnavailableError
from pytest_llmperf.hardware.gpu_clocks import ClockState, clock_state
from pytest_llmperf.measure import throttling
from pytest_llmperf.measure.kernel import KernelTimer
from pytest_llmperf.measure.kernel_name import arguments_of, call_name
from pytest_llmperf.measure.kernel_result import call_result
from pytest_llmperf.measure.kernel_timing import Limits, Timing
from pytest_llmperf.measure.roofline import copy_rate, matrix_rate
from pytest_llmperf.measure.sampling import Stop

FLUSH_MS = 7.0


@pytest.fixture
def cuda(monkeypatch) -> FakeCuda:
    """Replaces ``torch.cuda``; creating a tensor on it is work."""
    fake = FakeCuda()
    monkeypatch.setattr(torch, "cuda", fake)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", fake.end_allocate, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", fake.release_pool, raising=False)
    made = SimpleNamespace(zero_=lambda: fake.launch(FLUSH_MS), add_=lambda number: fake.launch(0.0))
    fake.buffers = []
    monkeypatch.setattr(torch, "empty", lambda size, **options: fake.buffers.append(size) or made)
    monkeypatch.setattr(torch, "ones", lambda size, **options: made)
    return fake


@pytest.fixture
def kept() -> list[Timing]:
    return []


@pytest.fixture
def timer(cuda, kept) -> KernelTimer:
    return KernelTimer("cuda:0", EventClock(cuda, "cuda:0"), kept.append)


@pytest.fixture
def pauses(monkeypatch) -> list[float]:
    """Records pauses instead of sleeping."""
    taken = []
    monkeypatch.setattr(throttling.time, "sleep", taken.append)
    return taken


@pytest.fixture
def clocks(monkeypatch, pauses) -> list[ClockState]:
    """Clock readings to return in turn; the last one repeats."""
    states = []
    monkeypatch.setattr(throttling, "clock_state", lambda device: states.pop(0) if len(states) > 1 else states[0])
    return states


@pytest.fixture
def host() -> KernelTimer:
    return KernelTimer("cpu", HostClock())


def test_eager_calls_and_replays_are_timed_one_by_one(cuda, timer, kept):
    """One sample per repetition; a replay's time is divided by the graph's calls."""
    cuda.replay_ms = 0.6
    timing = timer(cuda.launch, 2.0, repetitions=4, graph_repetitions=3)
    assert timing.samples_ms == (2.0,) * 4
    assert timing.graph_samples_ms == pytest.approx([2.2] * 4)
    assert (timing.median_ms, timing.graph_median_ms) == (2.0, pytest.approx(2.2))
    assert timing.graph_used
    assert not timing.graph_reason
    assert timing.clock == "cuda events"
    assert timing.warmup.steady
    assert cuda.replays == [3] * (1 + 4), "one replay warms up"
    assert cuda.is_as_before
    assert cuda.resets == 1, "its memory is given back"
    assert kept == [timing]
    assert (timing.name, timing.arguments) == ("launch", "2.0")
    assert "2 ms eager (MAD 0 ms, 4 samples, cuda events), 2.2 ms in a graph of 3 calls" in str(timing)


def test_the_flush_is_inside_the_graph_and_not_in_the_time(cuda, timer):
    """Before each call, eager and captured; the time of a graph of flushes is subtracted."""
    timing = timer(cuda.launch, 2.0, repetitions=2, graph_repetitions=3, flush_l2=True)
    assert cuda.buffers == [2 * (50 << 20)]
    assert timing.flushed_l2
    assert timing.samples_ms == (2.0, 2.0)
    assert timing.graph_samples_ms == pytest.approx([2.0, 2.0])
    assert cuda.eager[-7:] == [FLUSH_MS, 2.0] * 2 + [FLUSH_MS, 2.0] + [FLUSH_MS], (
        "two samples, two captures' first calls"
    )
    assert cuda.replays == [6, 3, 6, 3, 6, 3], "both warmed up, then alternating"
    assert "L2 flushed" in str(timing)


def test_calls_that_vanish_in_the_flush_have_no_figure(cuda, timer):
    """A time of 0 would be infinitely fast."""
    timing = timer(cuda.launch, 0.0, flush_l2=True)
    assert (timing.graph_used, timing.graph_median_ms, timing.graph_spread) == (False, None, None)
    assert "increase graph_repetitions" in timing.graph_reason


def test_a_call_that_gives_the_device_nothing_to_do_has_no_graph(cuda, timer):
    """Replaying an empty graph would look fast."""
    timing = timer(sum, [1, 2])
    assert timing.graph_reason.startswith("capture failed: UserWarning: The CUDA Graph is empty")
    assert cuda.is_as_before
    limits = Limits("cuda:0", "bfloat16", 1.0, 1.0)
    with pytest.raises(MeasurementError, match=r"the clock \(cuda events\) measured no time"):
        timing.roofline(limits=limits, operations=1)


def test_a_call_that_synchronizes_is_not_captured_at_all(cuda, timer):
    """It is detected before the capture; the eager samples are kept."""

    def item():
        cuda.launch(1.0)
        cuda.read_back()

    timing = timer(item, repetitions=3)
    assert timing.samples_ms == (1.0,) * 3
    assert timing.graph_reason == "the call synchronizes with the host, which CUDA graphs do not support"
    assert not cuda.released, "nothing was begun"
    assert cuda.is_as_before


def test_a_broken_capture_is_cleared_away(cuda, timer):
    """Stream, allocator and random state are as before, and the next callable can be captured."""
    timing = timer(broken_capture(cuda))
    assert timing.graph_reason == (
        "capture failed: RuntimeError: CUDA error: operation not permitted when stream is capturing"
    )
    assert cuda.released == [(0, "pool")]
    assert cuda.is_as_before
    cuda.capture_is_broken = False
    assert timer(cuda.launch, 1.0).graph_used


def broken_capture(cuda):
    def forbidden():
        cuda.launch(1.0)
        cuda.fail_if_capturing()

    return forbidden


def test_a_broken_capture_is_cleared_away_before_torch_2_8(cuda, timer, monkeypatch):
    """The allocator's function has another name there."""
    monkeypatch.delattr(torch._C, "_cuda_endAllocateToPool")
    monkeypatch.setattr(torch._C, "_cuda_endAllocateCurrentStreamToPool", cuda.end_allocate, raising=False)
    assert timer(broken_capture(cuda)).graph_reason.startswith("capture failed: ")
    assert cuda.released == [(0, "pool")]
    assert cuda.is_as_before


def test_a_broken_capture_gives_its_pool_back_since_torch_2_12(cuda, timer):
    """Ending the capture restores the allocator but keeps the pool."""
    cuda.ends_allocation = True
    assert timer(broken_capture(cuda)).graph_reason.startswith("capture failed: ")
    assert cuda.released == []
    assert cuda.is_as_before


def test_a_capture_that_cannot_begin_leaves_nothing(cuda, timer, monkeypatch):
    """There is no pool to release."""
    monkeypatch.setattr(fake_cuda.FakeGraph, "capture_begin", lambda *_, **__: refuse())
    assert timer(cuda.launch, 1.0).graph_reason == "capture failed: RuntimeError: INTERNAL ASSERT FAILED"
    assert cuda.is_as_before


def test_an_allocator_that_stays_in_a_capture_is_an_error(cuda, timer, monkeypatch):
    """If the function is missing, or fails for another reason than that no capture is in progress."""
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", refuse)
    with pytest.raises(
        MeasurementError, match=r"^cuda:0 does not work after .*: RuntimeError: INTERNAL ASSERT FAILED$"
    ):
        timer(broken_capture(cuda))
    monkeypatch.delattr(torch._C, "_cuda_endAllocateToPool")
    monkeypatch.delattr(torch._C, "_cuda_endAllocateCurrentStreamToPool", raising=False)
    cuda.capture_is_broken = False
    with pytest.raises(MeasurementError, match=r"no attribute '_cuda_endAllocateCurrentStreamToPool'$"):
        timer(broken_capture(cuda))


def refuse(*_):
    raise RuntimeError("INTERNAL ASSERT FAILED\nmore")


def test_an_error_of_python_in_a_capture_ends_it(cuda, timer):
    """The capture can end normally."""

    def picky():
        cuda.launch(1.0)
        if cuda.capturing:
            raise TypeError("not while capturing")

    assert timer(picky).graph_reason == "capture failed: TypeError: not while capturing"
    assert not cuda.released
    assert cuda.is_as_before


def test_a_device_that_a_capture_broke_is_an_error(cuda, timer, monkeypatch):
    """Later measurements on it would be invalid."""

    def dead(*_args, **_options):
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")

    monkeypatch.setattr(torch, "ones", dead)
    with pytest.raises(MeasurementError, match=r"cuda:0 does not work after a failed capture: .* encountered$"):
        timer(cuda.fail_if_capturing)
    assert cuda.stream_name == "default"


@pytest.mark.parametrize("raised", [KeyboardInterrupt, MeasurementError], ids=["interrupt", "time limit"])
def test_what_ends_a_test_in_a_capture_ends_it(cuda, timer, raised):
    """It is not treated as a failed capture, and the capture is ended."""

    def interrupted():
        cuda.launch(1.0)
        if cuda.capturing:
            raise raised

    with pytest.raises(raised):
        timer(interrupted)
    assert cuda.is_as_before


def test_an_error_of_the_callable_surfaces_as_itself(cuda, timer, kept):
    """The same object, before any capture."""
    error = ValueError("mine")

    def broken():
        raise error

    with pytest.raises(ValueError, match="mine") as caught:
        timer(broken)
    assert caught.value is error
    assert not cuda.replays
    assert kept == []


def test_an_error_of_a_later_call_surfaces_as_itself(cuda, timer):
    """Also in the uncaptured call on the graph's side stream."""

    def broken_there():
        cuda.launch(1.0)
        if cuda.stream_name != "default":
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match=r"^mine$"):
        timer(broken_there)
    assert cuda.is_as_before


def test_inputs_take_turns(cuda, timer):
    """Every call uses the next set, in the graph too."""
    seen = []
    timer(lambda one, two: seen.append((one, two)) or cuda.launch(1.0), inputs=[(1, 2), (3, 4)], graph_repetitions=4)
    assert set(pairwise(seen)) == {((1, 2), (3, 4)), ((3, 4), (1, 2))}


def test_a_cpu_has_its_clock_and_says_why_there_is_no_more(host, monkeypatch, tmp_path):
    """Each missing feature has a reason: graph, clocks, and flush if the cache size is unknown."""
    monkeypatch.setattr(l2_cache, "_HOST_CACHES", tmp_path)
    timing = host(sum, [1, 2, 3], repetitions=5, flush_l2=True)
    assert len(timing.samples_ms) == 5
    assert min(timing.samples_ms) > 0
    assert timing.spread.lower_quartile_ms <= timing.median_ms <= timing.spread.upper_quartile_ms
    assert timing.clock == "perf_counter"
    assert timing.graph_reason == "cpu has no CUDA graphs"
    assert timing.graph_median_ms is None
    assert timing.flush_reason == "the cache size of cpu is unknown"
    assert "L2 not flushed: the cache size of cpu is unknown" in str(timing)
    assert timing.before.reason == "cpu: clocks are read from NVML, which supports only NVIDIA devices"


def test_a_cpus_largest_cache_is_flushed(host, monkeypatch, tmp_path):
    """By a buffer of twice its size; unreadable sizes are skipped."""
    for index, size in enumerate(["32K", "64K", "odd"]):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(f"{size}\n")
    monkeypatch.setattr(l2_cache, "_HOST_CACHES", tmp_path)
    buffers, empty = [], torch.empty
    monkeypatch.setattr(torch, "empty", lambda size, **options: buffers.append(size) or empty(size, **options))
    assert host(sum, [1], flush_l2=True).flushed_l2
    assert buffers == [2 * 64 << 10]


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((), {"repetitions": 0}, "repetitions=0: expected a whole number of at least 1"),
        ((), {"repetitions": 5, "precision": 0.1}, "found precision=0.1 and repetitions=5; expected only one of them"),
        ((), {"repetitions": 5, "budget_ms": 9}, "found budget_ms=9 and repetitions=5; expected only one of them"),
        ((), {"precision": 0.0}, "precision=0.0: expected a number above 0"),
        ((), {"precision": True}, "precision=True: expected a number above 0"),
        ((), {"budget_ms": float("inf")}, "budget_ms=inf: expected a number above 0"),
        ((), {"budget_ms": "1 s"}, "budget_ms='1 s': expected a number above 0"),
        ((), {"graph_repetitions": 2.5}, "graph_repetitions=2.5: expected a whole number of at least 1"),
        ((), {"warmup": True}, "warmup=True: expected a whole number of at least 1"),
        ((1,), {"inputs": [(1,)]}, "found 1 positional arguments and inputs=; expected only one of them"),
        ((), {"inputs": []}, r"inputs=\[\]: expected a non-empty sequence of argument tuples"),
        ((), {"inputs": [1]}, r"inputs=\[1\]: expected a non-empty sequence"),
    ],
)
def test_wrong_arguments_are_named(host, arguments, options, message):
    """Before anything is called."""
    called = []
    with pytest.raises(UsageError, match=message):
        host(called.append, *arguments, **options)
    assert called == []


def test_what_cannot_be_called_is_refused(host):
    """Such as the result of a call."""
    with pytest.raises(UsageError, match="3: expected a callable"):
        host(3)


def test_a_roofline_is_a_share_of_what_was_measured(cuda, timer):
    """By the replays, which exclude launch times."""
    cuda.replay_ms = -5.0  # ten calls of 1 ms in 5 ms
    timing = timer(cuda.launch, 1.0, graph_repetitions=10)
    limits = Limits("cuda:0", "bfloat16", copy_bytes_per_s=1e9, matrix_operations_per_s=1e12)
    reached = timing.roofline(limits=limits, bytes_moved=400_000, operations=1e8)
    assert reached.bytes_per_s == pytest.approx(8e8)
    assert reached.copy_share == pytest.approx(0.8)
    assert reached.matrix_share == pytest.approx(0.2)
    assert timing.roofline(limits=limits, bytes_moved=1).matrix_share is None


@pytest.mark.parametrize(
    ("device", "work", "message"),
    [
        ("cpu", {}, "nothing to compare; expected bytes_moved= or operations="),
        ("cpu", {"operations": 0}, "operations=0: expected a number above 0"),
        ("cpu", {"bytes_moved": float("nan")}, "bytes_moved=nan"),
        ("cuda:0", {"operations": 1}, "found limits of cuda:0; expected limits of cpu"),
    ],
)
def test_a_roofline_needs_work_and_its_own_device(host, device, work, message):
    """Each error is one line."""
    timing = host(sum, [1])
    with pytest.raises(UsageError, match=message):
        timing.roofline(limits=Limits(device, "float32", 1.0, 1.0), **work)


def test_limits_are_bytes_and_operations_of_the_fastest_sample():
    """Bytes read and written, multiplications and additions all count."""
    timing = SimpleNamespace(samples_ms=(3.0, 2.0, 9.0), graph_samples_ms=())
    assert copy_rate(lambda *_args, **_options: timing, "cpu") == 2 * (64 << 20) / 2e-3
    assert matrix_rate(lambda *_args, **_options: timing, "cpu", "float32") == 2 * 512**3 / 2e-3


def test_limits_are_measured_once_a_process(host):
    """For any number of timers."""
    limits = host.limits("float32")
    assert limits.copy_bytes_per_s > 0
    assert limits.matrix_operations_per_s > 0
    assert KernelTimer.on("cpu").limits("float32") == limits


@pytest.mark.parametrize("dtype", ["int16", "float33", "", None, "ones"])
def test_a_matrix_rate_is_of_a_multiplied_dtype(host, dtype):
    """Other dtypes are refused."""
    with pytest.raises(UsageError, match="expected a floating dtype of torch, such as 'bfloat16', or 'int8'"):
        host.limits(dtype)


def test_clocks_are_read_and_what_is_not_told_is_none(monkeypatch):
    """Unknown values are None, not 0."""
    monkeypatch.setattr(clock_states, "nvml_handle", FakeNvml(SmClock=1980, CurrentClocksEventReasons=4).handle)
    assert clock_state("cuda:0") == ClockState(
        1980, None, ("SwPowerCap",), "the driver does not report all clocks and throttle reasons"
    )


def test_clocks_that_were_held_back_are_told(timer, cuda, clocks):
    """Before or after the samples; an idle device is not throttled. After several repeats, samples are kept."""
    clocks += [ClockState(throttle_reasons=("GpuIdle",)), ClockState(throttle_reasons=("HwSlowdown",))]
    timing = timer(cuda.launch, 1.0, repetitions=10)
    assert timing.held_back == ("HwSlowdown",)
    assert (timing.discarded, timing.throttled) == (30, 20)
    assert str(timing).endswith("clocks reduced: HwSlowdown, 30 throttled samples discarded, 20 throttled samples kept")
    found = call_result(timing, test="t", run_id="r", guards=frozenset({"throttling"}))
    assert found.observation.invalid == "clocks of cuda:0 reduced by HwSlowdown (guard throttling)"
    assert call_result(timing, test="t", run_id="r").observation.invalid == ""


def test_samples_of_a_throttled_device_are_made_again(timer, cuda, clocks, pauses):
    """After a pause and a warm-up; the discarded samples are dropped, and the guard does not object."""
    throttled, well = ClockState(throttle_reasons=("HwThermalSlowdown",)), ClockState(throttle_reasons=("SwPowerCap",))
    clocks += [throttled, well, throttled, throttled, well]
    durations = iter([*[1.0] * 2, *[9.0] * 100, *[1.0] * 1000])
    timing = timer(lambda: cuda.launch(next(durations)), repetitions=25, warmup=1)
    assert (timing.discarded, timing.throttled, len(timing.samples_ms)) == (50, 0, 25)
    assert set(timing.samples_ms) == {1.0}
    assert (timing.before, timing.after, timing.held_back) == (well, well, ("SwPowerCap",))
    assert "50 throttled samples discarded" in str(timing)
    assert pauses == [0.05, 0.1]
    found = call_result(timing, test="t", run_id="r", guards=frozenset({"throttling"}))
    assert found.observation.invalid == ""
    assert found.observation.conditions["discarded_samples"] == 50


@pytest.mark.parametrize(
    ("told", "discarded"),
    [
        ({"SmClock": 900, "CurrentClocksEventReasons": 4}, 30),
        ({"SmClock": 900, "CurrentClocksEventReasons": 1}, 0),
        ({"SmClock": 1100, "CurrentClocksEventReasons": 4}, 0),
        ({"CurrentClocksEventReasons": 4}, 0),
        ({"SmClock": 900, "MaxClockInfo": None, "CurrentClocksEventReasons": 4}, 0),
    ],
    ids=["below half", "idle", "above half", "clock untold", "highest clock untold"],
)
@pytest.mark.usefixtures("pauses")
def test_an_sm_clock_below_half_is_throttled(timer, cuda, monkeypatch, told, discarded):
    """Unless the device is idle or its full clock is unknown. NVML is initialized once."""
    nvml = FakeNvml(**{"MaxClockInfo": 1980, **told})
    monkeypatch.setattr(clock_states, "nvml_handle", nvml.handle)
    monkeypatch.setattr(throttling, "nvml_handle", nvml.handle)
    assert timer(cuda.launch, 1.0, repetitions=10).discarded == discarded
    assert nvml.started == 1


def test_a_timing_goes_on_until_it_is_precise(cuda, timer):
    """Separately for eager calls and replays; a graph has as many calls as take 2 ms."""
    timing = timer(cuda.launch, 0.5)
    assert (timing.stop, timing.graph_stop) == (Stop.PRECISION, Stop.PRECISION)
    assert (len(timing.samples_ms), len(timing.graph_samples_ms)) == (40, 10), "20 ms of each"
    assert (timing.precision, timing.graph_precision, timing.wanted_precision) == (0.0, 0.0, 0.005)
    assert timing.graph_repetitions == 4
    assert str(timing) == (
        "0.5 ms eager (MAD 0 ms, 40 samples ±0 %, cuda events), 0.5 ms in a graph of 4 calls (10 samples ±0 %)"
    )


def test_a_precision_that_was_not_reached_is_told(cuda, timer):
    """The target is shown; the budget ends the sampling."""
    durations = cycle([1.0, 2.0])
    timing = timer(lambda: cuda.launch(next(durations)), budget_ms=60, precision=0.01, graph_repetitions=2)
    assert timing.stop is Stop.TIME
    assert 60 <= sum(timing.samples_ms) <= 63
    assert timing.precision > 0.01
    assert timing.graph_stop is Stop.PRECISION
    assert f"{len(timing.samples_ms)} samples ±13 %, target ±1 %, cuda events" in str(timing)


def test_a_given_number_has_no_precision_to_miss(cuda, timer):
    """Exactly that many samples are taken, in one batch."""
    timing = timer(cuda.launch, 1.0, repetitions=3, graph_repetitions=1)
    assert (len(timing.samples_ms), timing.stop, timing.wanted_precision) == (3, Stop.NUMBER, None)
    assert timing.precision == float("inf")
    assert str(timing) == "1 ms eager (MAD 0 ms, 3 samples, cuda events), 1 ms in a graph of 1 call (3 samples)"


def test_flushes_count_for_the_budget(cuda, timer):
    """Otherwise a very short call would be flushed for hours."""
    timing = timer(cuda.launch, 0.001, flush_l2=True, precision=1e-9, budget_ms=100)
    assert len(timing.samples_ms) <= 100 / FLUSH_MS + 1


def test_a_graph_comes_to_every_input_equally_often(cuda, timer):
    """For any call time and number of inputs."""
    inputs = [(0.3,)] * 3
    assert timer(cuda.launch, inputs=inputs).graph_repetitions == 9
    assert timer(cuda.launch, inputs=[(5.0,)] * 3).graph_repetitions == 3
    assert timer(cuda.launch, inputs=[(0.0,)] * 1200).graph_repetitions == 1200
    assert timer(cuda.launch, 1e-9).graph_repetitions == 1000


def test_without_nvml_there_is_a_reason(monkeypatch):
    """Timing continues."""

    def unavailable(device):
        raise NvmlUnavailableError("nvidia-ml-py is not installed")

    monkeypatch.setattr(clock_states, "nvml_handle", unavailable)
    assert clock_state("cuda:0") == ClockState(reason="nvidia-ml-py is not installed")


@pytest.mark.parametrize(
    ("call", "name", "arguments"),
    [
        (partial(torch.mm, torch.ones(2, 3), torch.ones(3, 1)), "mm", "float32[2, 3], float32[3, 1]"),
        (partial(partial(sorted, reverse=True), [1]), "sorted", "list, reverse=True"),
        (partial(partial(dict, a=1), a="x", b=None), "dict", "a='x', b=None"),
        (partial("{}".format, 1.5), "format", "1.5"),
    ],
)
def test_a_call_has_a_name_that_is_the_same_in_every_run(call, name, arguments):
    """Without addresses or tensor contents."""
    assert (call_name(call), arguments_of(call)) == (name, arguments)


def test_a_graphs_figure_stands_before_the_eager_one(cuda, timer):
    """The primary metric is the replayed time, which contains less host time."""
    cuda.replay_ms = 0.0
    result = call_result(timer(cuda.launch, 2.0, graph_repetitions=5), test="t", run_id="r")
    assert result.workload.execution == "graph"
    assert result.workload.settings == {"arguments": "2.0", "flushed_l2": False, "graph_repetitions": 5}
    assert [cell.metric for cell in result.cells] == ["call_ms", "eager_call_ms"]
    assert result.value("call") == pytest.approx(2.0)


@pytest.mark.parametrize("option", [{}, {"precision": 0.1}, {"repetitions": 20}])
def test_the_number_of_samples_is_no_part_of_the_workload(cuda, timer, option):
    """Neither is a number of graph calls that the timer chose: each run would be another workload."""
    first, other = (call_result(timer(cuda.launch, inputs=[(ms,)] * 2, **option), test="t", run_id="r")
                    for ms in (0.2, 0.3))  # fmt: skip
    assert first.workload.settings["graph_repetitions"] == "auto"
    assert first.workload.model_dump(exclude={"settings"}) == other.workload.model_dump(exclude={"settings"})
    assert first.workload.settings | {"arguments": ""} == other.workload.settings | {"arguments": ""}
