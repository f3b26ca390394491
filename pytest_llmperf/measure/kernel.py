"""Kernel timer: time any callable with events around eager calls and around CUDA graph replays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import cache, partial
from itertools import cycle
from math import ceil
from statistics import median
from typing import Any, NamedTuple

from pytest_llmperf.errors import UsageError
from pytest_llmperf.hardware.clock import Clock, clock_for
from pytest_llmperf.hardware.cuda_graph import NotCapturableError, captured, why_no_graphs
from pytest_llmperf.hardware.device import resolve_device
from pytest_llmperf.hardware.garbage_collector import collector_paused
from pytest_llmperf.hardware.l2_cache import Flush, l2_flush, no_flush
from pytest_llmperf.measure.kernel_name import arguments_of, call_name
from pytest_llmperf.measure.kernel_timing import FLUSH_OFF, Limits, Timing
from pytest_llmperf.measure.roofline import copy_rate, matrix_rate
from pytest_llmperf.measure.sampling import BATCH_MS, SHORTEST_MS, Rule, Sampler, Stop
from pytest_llmperf.measure.throttling import watch_throttling
from pytest_llmperf.measure.warmup import warm_up
from pytest_llmperf.storage.schema import Warmup
from pytest_llmperf.validation import require_text, require_whole

LARGEST_WARM_UP = 1000
"""Most calls in a warm-up batch. It should take as long as a batch of samples: an idle device needs tens of
milliseconds to raise its clocks."""
GRAPH_MS = 2.0
"""Target duration of a replay, in milliseconds. Launching a replay takes microseconds, shared by its calls."""
LARGEST_GRAPH = 1000
"""Most calls in a graph. Capturing a call takes as long as making it, and each node takes memory."""

Call = Callable[[], object]
Calls = Iterator[Call]
Stamps = tuple[Any, Any]
"""Before and after a call."""


class Work(NamedTuple):
    """The calls to time, in turn, and the cache flush before each."""

    calls: Calls
    flush: Flush

    def once(self) -> None:
        """Make one flush and one call."""
        self.flush.run()
        next(self.calls)()

    def repeat(self, times: int) -> None:
        """Make this many flushes and calls."""
        for _ in range(times):
            self.once()


class Replays(NamedTuple):
    """Samples of graph replays, or the reason why there are none."""

    samples_ms: tuple[float, ...] = ()
    stop: Stop | None = None
    reason: str = ""


class KernelTimer:
    """Times callables on one device.

    Args:
        device: the torch device, such as ``cpu`` or ``cuda:0``.
        clock: the device's clock.
        keep: called with each timing.
    """

    def __init__(self, device: str, clock: Clock, keep: Callable[[Timing], object] = lambda _timing: None) -> None:
        self.device = device
        self._clock = clock
        self._keep = keep

    @classmethod
    def on(cls, device: str = "auto") -> KernelTimer:
        """Create a timer for use without pytest.

        Raises:
            UsageError: the device does not exist; ``MissingDependency`` without torch.
        """
        found = resolve_device(device)
        return cls(found, clock_for(found))

    def __call__(  # noqa: PLR0913  # one keyword per timing option
        self,
        fn: Callable[..., object],
        *args: Any,
        inputs: Sequence[tuple[Any, ...]] | None = None,
        repetitions: int | None = None,
        precision: float | None = None,
        budget_ms: float | None = None,
        graph_repetitions: int | None = None,
        flush_l2: bool = False,
        warmup: int = 10,
        name: str | None = None,
    ) -> Timing:
        """Time single calls of ``fn``. Errors raised by ``fn`` propagate.

        Eager calls are sampled until their median is precise enough or the budget is spent, from 10 to 1000 samples;
        then graph replays in the same way. Batches of samples during which an NVIDIA device was throttled are repeated,
        at most three per timing.

        Args:
            fn: the callable to time; bind keywords with ``functools.partial``.
            *args: its arguments, the same in every call.
            inputs: tuples of arguments, used in turn instead of ``args``. If they are together larger than the caches,
                no call finds its inputs cached.
            repetitions: exact number of samples, of eager calls and of graph replays, whatever their precision.
            precision: relative standard error of each median to reach (default: 0.005), by the formula of
                :func:`pytest_llmperf.measure.sampling.error_of_median`.
            budget_ms: time budget for eager calls, and the same again for replays, in milliseconds (default: 200); at
                least ten samples are taken even if they take longer.
            graph_repetitions: calls in one CUDA graph (default: as many as take about 2 ms).
            flush_l2: whether to flush the L2 cache (on a CPU, the largest cache) before each call, outside its time.
            warmup: most batches of warm-up calls.
            name: name to record (default: the callable's own).

        Raises:
            UsageError: an argument is invalid, or ``repetitions`` is combined with ``precision`` or ``budget_ms``.
            MeasurementError: the device no longer works after a failed capture.
        """
        made = _calls(fn, args, inputs)
        calls = cycle(made)
        rule = Rule.of(repetitions, precision, budget_ms)
        require_whole("warmup", warmup, at_least=1)
        if graph_repetitions is not None:
            require_whole("graph_repetitions", graph_repetitions, at_least=1)
        if name is not None:
            require_text("cuda_timer: name", name)
        with collector_paused():
            next(calls)()
            work = Work(calls, l2_flush(self.device) if flush_l2 else no_flush(FLUSH_OFF))
            warmed, call_ms = self._warm_up(work, warmup)
            graph_calls = graph_repetitions or _graph_calls(call_ms, sets=len(made))
            with watch_throttling(self.device) as throttling:
                sampler = Sampler(rule, throttling)
                samples, stop = self._time_eager(work, sampler, call_ms)
                replays = self._time_graph(work, sampler, call_ms, graph_calls)
        timing = Timing(
            name=name or call_name(fn),
            arguments=arguments_of(made[0], of=len(made)),
            device=self.device,
            clock=self._clock.name,
            samples_ms=samples,
            stop=stop,
            graph_samples_ms=replays.samples_ms,
            graph_stop=replays.stop,
            wanted_precision=None if rule.is_number else rule.precision,
            graph_repetitions=graph_calls,
            graph_sized=graph_repetitions is None,
            graph_reason=replays.reason,
            flush_reason=work.flush.reason,
            warmup=warmed,
            clocks=tuple(throttling.looks),
            discarded=throttling.discarded,
            throttled=throttling.kept,
        )
        self._keep(timing)
        return timing

    def limits(self, dtype: str) -> Limits:
        """Measured peak rates of the device, for a roofline; measured on first use, once per process.

        Args:
            dtype: a torch dtype of which the device has matrix products, such as ``bfloat16`` or ``int8``.

        Raises:
            UsageError: ``dtype`` is not such a dtype.
        """
        return Limits(self.device, dtype, copy_bandwidth(self.device), matrix_product_rate(self.device, dtype))

    def _warm_up(self, work: Work, cap: int) -> tuple[Warmup, float]:
        """Warm up; return the outcome, and the milliseconds per flush and call in the last batch."""
        size, call_ms = 1, 0.0

        def batch() -> float:
            nonlocal size, call_ms
            (took_ms,) = self._elapsed([self._stamped(partial(work.repeat, size))])
            call_ms = max(took_ms, SHORTEST_MS) / size
            size = min(ceil(BATCH_MS / call_ms), LARGEST_WARM_UP)
            return call_ms

        warmed = warm_up(batch, cap=cap)
        return warmed, call_ms

    def _time_eager(self, work: Work, sampler: Sampler, call_ms: float) -> tuple[tuple[float, ...], Stop]:
        def sample() -> list[Stamps]:
            work.flush.run()
            return [self._stamped(next(work.calls))]

        def take(number: int) -> tuple[Sequence[float], float]:
            (samples,), took_ms = self._batch(sample, number)
            return samples, took_ms

        return sampler.collect(take, estimate_ms=call_ms)

    def _time_graph(self, work: Work, sampler: Sampler, call_ms: float, graph_calls: int) -> Replays:
        if reason := why_no_graphs(self.device):
            return Replays(reason=reason)
        try:
            samples, stop = self._time_replays(work, sampler, call_ms, graph_calls)
        except NotCapturableError as error:
            return Replays(reason=str(error))
        if min(samples) <= 0:
            return Replays(
                reason="the variation of the L2 flush exceeds the time of the calls: increase graph_repetitions"
            )
        return Replays(samples, stop)

    def _time_replays(
        self, work: Work, sampler: Sampler, call_ms: float, graph_calls: int
    ) -> tuple[tuple[float, ...], Stop]:
        """Time of one call: a replay of flushes and calls, minus a replay of flushes alone, per call.

        Events recorded inside the graph would need no subtraction, but older torch versions cannot time them, and each
        adds work between two calls. Replays of both graphs alternate, so that clock drift affects both.
        """

        def sample() -> list[Stamps]:
            return [self._stamped(graph.replay) for graph in graphs]

        def take(number: int) -> tuple[Sequence[float], float]:
            (whole, *alone), took_ms = self._batch(sample, number)
            flushes_ms = median(alone[0]) if alone else 0.0
            return [(replay_ms - flushes_ms) / graph_calls for replay_ms in whole], took_ms

        with ExitStack() as stack:
            graphs = [stack.enter_context(captured(self.device, work.once, graph_calls))]
            if not work.flush.reason:
                graphs.append(stack.enter_context(captured(self.device, work.flush.run, graph_calls)))
            return sampler.collect(take, estimate_ms=call_ms * graph_calls)

    def _batch(self, sample: Callable[[], list[Stamps]], number: int) -> tuple[list[tuple[float, ...]], float]:
        """Take this many samples; return their times by pair of stamps, and the total time in milliseconds."""
        start = self._clock.stamp()
        samples = [sample() for _ in range(number)]
        (took_ms,) = self._elapsed([(start, self._clock.stamp())])
        return [self._elapsed(stamps) for stamps in zip(*samples, strict=True)], took_ms

    def _stamped(self, call: Call) -> Stamps:
        start = self._clock.stamp()
        output = call()
        end = self._clock.stamp()
        del output  # freeing the output is not part of the call
        return start, end

    def _elapsed(self, stamps: Sequence[Stamps]) -> tuple[float, ...]:
        self._clock.synchronize()
        return tuple(self._clock.elapsed_ms(start, end) for start, end in stamps)


@cache
def copy_bandwidth(device: str) -> float:
    """Bytes per second that a copy on the device reads and writes; measured on first use, once per process."""
    return copy_rate(KernelTimer.on(device), device)


@cache
def matrix_product_rate(device: str, dtype: str) -> float:
    """Operations per second of a matrix product on the device; measured on first use, once per process and dtype."""
    return matrix_rate(KernelTimer.on(device), device, dtype)


def _graph_calls(call_ms: float, *, sets: int) -> int:
    """Number of calls per graph for about 2 ms, given the time per call; a multiple of ``sets``, one round at least."""
    rounds = min(ceil(GRAPH_MS / (call_ms * sets)), LARGEST_GRAPH // sets)
    return max(rounds, 1) * sets


def _calls(
    fn: Callable[..., object], args: tuple[Any, ...], inputs: Sequence[tuple[Any, ...]] | None
) -> list[partial[object]]:
    """One bound call of ``fn`` for each set of arguments."""
    if not callable(fn):
        raise UsageError(f"cuda_timer: {fn!r}: expected a callable")
    if inputs is None:
        return [partial(fn, *args)]
    if args:
        raise UsageError(f"cuda_timer: found {len(args)} positional arguments and inputs=; expected only one of them")
    if not inputs or not all(isinstance(one, tuple) for one in inputs):
        raise UsageError(f"cuda_timer: inputs={inputs!r}: expected a non-empty sequence of argument tuples")
    return [partial(fn, *one) for one in inputs]
