"""Timing any callable: events around eager calls, and around replays of a CUDA graph where it can be captured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import cache, partial
from itertools import cycle, islice
from math import ceil
from statistics import median
from typing import Any

from pytest_llmperf.errors import UsageError
from pytest_llmperf.measure.arguments import require_whole
from pytest_llmperf.measure.call_name import arguments_of, call_name
from pytest_llmperf.measure.clock import Clock, clock_for
from pytest_llmperf.measure.clock_state import clock_state
from pytest_llmperf.measure.collector import collector_paused
from pytest_llmperf.measure.device import resolve_device
from pytest_llmperf.measure.graph import NotCapturableError, captured, why_no_graphs
from pytest_llmperf.measure.l2 import Flush, l2_flush, no_flush
from pytest_llmperf.measure.roofline import copy_rate, matrix_rate
from pytest_llmperf.measure.timing import FLUSH_OFF, Limits, Timing
from pytest_llmperf.measure.warmup import warm_up
from pytest_llmperf.records.schema import Warmup

BATCH_MS = 20.0
"""How long a batch of warming up is to take: an idle device takes tens of milliseconds to raise its clocks."""
LARGEST_BATCH = 1000
SHORTEST_MS = 1e-6
"""No clock here tells less from nothing at all."""

Call = Callable[[], object]
Calls = Iterator[Call]


class KernelTimer:
    """Times callables on one device.

    Args:
        device: as torch names it, such as ``cpu`` or ``cuda:0``.
        clock: of that device.
        keep: is given each timing.
    """

    def __init__(self, device: str, clock: Clock, keep: Callable[[Timing], object] = lambda _timing: None) -> None:
        self.device = device
        self._clock = clock
        self._keep = keep

    @classmethod
    def on(cls, device: str = "auto") -> KernelTimer:
        """A timer for use without pytest.

        Raises:
            UsageError: there is no such device here; ``MissingDependency`` without torch.
        """
        found = resolve_device(device)
        return cls(found, clock_for(found))

    def __call__(  # noqa: PLR0913  # one keyword for each thing that decides how a call is timed
        self,
        fn: Callable[..., object],
        *args: Any,
        inputs: Sequence[tuple[Any, ...]] | None = None,
        repetitions: int = 10,
        graph_repetitions: int = 10,
        flush_l2: bool = False,
        warmup: int = 10,
        name: str | None = None,
    ) -> Timing:
        """Time single calls of ``fn``. What it raises comes out as it is.

        Args:
            fn: what to time; keywords can be bound with ``functools.partial``.
            *args: its arguments, the same in every call.
            inputs: tuples of arguments, taken in turn instead of ``args``: together larger than the caches, they keep
                one call from warming them for the next.
            repetitions: samples to take, of eager calls and of graph replays.
            graph_repetitions: calls that one CUDA graph holds.
            flush_l2: whether to empty the L2 cache, on a CPU the largest one, before each call, outside its time.
            warmup: most batches of calls to warm up with.
            name: under which it is recorded (default: the callable's own).

        Raises:
            UsageError: an argument is not of its kind.
            MeasurementError: the device does not work any more after a capture that failed.
        """
        made = _calls(fn, args, inputs)
        calls = cycle(made)
        counts = {"repetitions": repetitions, "graph_repetitions": graph_repetitions, "warmup": warmup}
        for what, count in counts.items():
            require_whole(what, count, at_least=1)
        if name is not None and not (isinstance(name, str) and name.strip()):
            raise UsageError(f"cuda_timer: name={name!r}: expected a text")
        with collector_paused():
            warmed = self._warm_up(calls, warmup)
            flush = l2_flush(self.device) if flush_l2 else no_flush(FLUSH_OFF)
            before = clock_state(self.device)
            samples = self._time_eager(calls, flush, repetitions)
            graph_samples, graph_reason = self._time_graph(calls, flush, repetitions, graph_repetitions)
            after = clock_state(self.device)
        timing = Timing(
            name=name or call_name(fn),
            arguments=arguments_of(made[0], of=len(made)),
            device=self.device,
            clock=self._clock.name,
            samples_ms=samples,
            graph_samples_ms=graph_samples,
            graph_repetitions=graph_repetitions,
            graph_reason=graph_reason,
            flush_reason=flush.reason,
            warmup=warmed,
            before=before,
            after=after,
        )
        self._keep(timing)
        return timing

    def limits(self, dtype: str) -> Limits:
        """What the device can do at most: measured on first use, once a process.

        Args:
            dtype: a floating dtype of torch that the device multiplies matrices of, such as ``bfloat16``.

        Raises:
            UsageError: ``dtype`` is not one.
        """
        return _limits(self.device, dtype)

    def _warm_up(self, calls: Calls, cap: int) -> Warmup:
        next(calls)()
        size = 1

        def batch() -> float:
            nonlocal size
            (took_ms,) = self._elapsed([self._stamped(partial(_make, calls, size))])
            per_call_ms = max(took_ms, SHORTEST_MS) / size
            size = min(ceil(BATCH_MS / per_call_ms), LARGEST_BATCH)
            return per_call_ms

        return warm_up(batch, cap=cap)

    def _time_eager(self, calls: Calls, flush: Flush, repetitions: int) -> tuple[float, ...]:
        stamps = []
        for call in islice(calls, repetitions):
            flush.run()
            stamps.append(self._stamped(call))
        return self._elapsed(stamps)

    def _time_graph(
        self, calls: Calls, flush: Flush, repetitions: int, graph_repetitions: int
    ) -> tuple[tuple[float, ...], str]:
        """The samples, or why there are none."""
        if reason := why_no_graphs(self.device):
            return (), reason
        try:
            samples = self._time_replays(calls, flush, repetitions, graph_repetitions)
        except NotCapturableError as error:
            return (), str(error)
        if median(samples) <= 0:
            return (), "the calls take less time than the L2 flush varies by: raise graph_repetitions"
        return samples, ""

    def _time_replays(self, calls: Calls, flush: Flush, repetitions: int, graph_repetitions: int) -> tuple[float, ...]:
        """Time of one call, from replays of a graph of flushes and calls, less those of a graph of flushes alone.

        Events recorded inside the graph would need no subtraction, but older versions of torch have none that can be
        timed, and each is work of its own between two calls. The replays of both graphs alternate, so that a drift of
        the device's clocks is in both.
        """

        def flush_and_call() -> None:
            flush.run()
            next(calls)()

        with ExitStack() as stack:
            graphs = [stack.enter_context(captured(self.device, flush_and_call, graph_repetitions))]
            if not flush.reason:
                graphs.append(stack.enter_context(captured(self.device, flush.run, graph_repetitions)))
            rounds = [[self._stamped(graph.replay) for graph in graphs] for _ in range(repetitions)]
            whole, *alone = (self._elapsed(stamps) for stamps in zip(*rounds, strict=True))
        flushes_ms = median(alone[0]) if alone else 0.0
        return tuple((sample - flushes_ms) / graph_repetitions for sample in whole)

    def _stamped(self, call: Call) -> tuple[Any, Any]:
        start = self._clock.stamp()
        output = call()
        end = self._clock.stamp()
        del output  # freeing it is not part of the call
        return start, end

    def _elapsed(self, stamps: Sequence[tuple[Any, Any]]) -> tuple[float, ...]:
        self._clock.synchronize()
        return tuple(self._clock.elapsed_ms(start, end) for start, end in stamps)


@cache
def copy_bandwidth(device: str) -> float:
    """Bytes that a copy on a device reads and writes by second: measured on first use, once a process."""
    return copy_rate(KernelTimer.on(device), device)


@cache
def _limits(device: str, dtype: str) -> Limits:
    operations_per_s = matrix_rate(KernelTimer.on(device), device, dtype)
    return Limits(device, dtype, copy_bandwidth(device), operations_per_s)


def _make(calls: Calls, number: int) -> None:
    for call in islice(calls, number):
        call()


def _calls(
    fn: Callable[..., object], args: tuple[Any, ...], inputs: Sequence[tuple[Any, ...]] | None
) -> list[partial[object]]:
    """One call of ``fn`` for each set of arguments."""
    if not callable(fn):
        raise UsageError(f"cuda_timer: {fn!r}: expected something to call")
    if inputs is None:
        return [partial(fn, *args)]
    if args:
        raise UsageError(f"cuda_timer: {len(args)} arguments beside inputs=: expected either")
    if not inputs or not all(isinstance(one, tuple) for one in inputs):
        raise UsageError(f"cuda_timer: inputs={inputs!r}: expected tuples of arguments, at least one")
    return [partial(fn, *one) for one in inputs]
