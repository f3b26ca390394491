"""Measure serving throughput and latency: warm up, then passes over the same requests, with one of three schedulers."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from pytest_llmperf.engines.engine import Answer, Ask, Engine
from pytest_llmperf.engines.executions.request import RequestTimes
from pytest_llmperf.errors import MeasurementError, UsageError
from pytest_llmperf.hardware.garbage_collector import collector_paused
from pytest_llmperf.hardware.memory import Peak, trace_memory
from pytest_llmperf.measure.contention import undisturbed
from pytest_llmperf.measure.generation import WARMUP_TOKENS
from pytest_llmperf.measure.progress import TIMED_REQUESTS
from pytest_llmperf.measure.serving_plan import NAIVE, ServingPlan, digest_asks, make_asks
from pytest_llmperf.measure.warmup import warm_up
from pytest_llmperf.metrics import Scalar
from pytest_llmperf.storage.schema import Warmup

SERVING = "serving"
"""Phase name of the serving memory peak."""

_MS_PER_S = 1e3


@dataclass(frozen=True)
class ServedRequest:
    """A request and its answer."""

    arrival_s: float
    """When it was due. Latencies are measured from here, not from when it was sent."""
    answer: Answer

    @property
    def ttft_ms(self) -> float:
        """Due time to first output token."""
        return (self.answer.first_s - self.arrival_s) * _MS_PER_S

    @property
    def e2e_ms(self) -> float:
        """Due time to last output token."""
        return (self.answer.last_s - self.arrival_s) * _MS_PER_S

    @property
    def tpot_ms(self) -> float | None:
        """(last token - first token) / (output tokens - 1); ``None`` for a single token."""
        steps = self.answer.output_tokens - 1
        return (self.answer.last_s - self.answer.first_s) * _MS_PER_S / steps if steps else None

    @property
    def times(self) -> RequestTimes:
        """Request times for callbacks, with every gap equal to the request's TPOT."""
        gaps = [] if self.tpot_ms is None else [self.tpot_ms] * (self.answer.output_tokens - 1)
        return RequestTimes(self.ttft_ms, gaps, self.e2e_ms)

    @property
    def lateness_ms(self) -> float:
        """Due time to send time."""
        return (self.answer.sent_s - self.arrival_s) * _MS_PER_S


@dataclass(frozen=True)
class Pass:
    """One pass over all requests, on one time axis."""

    requests: Sequence[ServedRequest]

    @property
    def elapsed_s(self) -> float:
        """First arrival to last token."""
        return max(one.answer.last_s for one in self.requests) - min(one.arrival_s for one in self.requests)

    @property
    def output_tokens(self) -> int:
        """Tokens produced."""
        return sum(one.answer.output_tokens for one in self.requests)

    @property
    def input_tokens(self) -> int:
        """Prompt tokens, as counted by the engine."""
        return sum(one.answer.input_tokens for one in self.requests)


@dataclass(frozen=True, kw_only=True)
class ServingMeasurement:
    """All results of one plan on one engine."""

    plan: ServingPlan
    longest_input: int
    longest_output: int
    prompt_sha256: str
    """Digest of all prompts and output lengths."""
    settings: dict[str, Scalar]
    """The engine's settings while it served."""
    warmup: Warmup
    passes: Sequence[Pass]
    disturbed: int | None
    """Passes that CPU contention slowed; ``None`` if unknown."""
    peak: Peak


def measure_serving(
    engine: Engine,
    plan: ServingPlan,
    *,
    enter: Callable[[str], None] = lambda _phase: None,
    on_request: Callable[[RequestTimes], None] = lambda _times: None,
    now: Callable[[], float] = time.perf_counter,
) -> ServingMeasurement:
    """Measure how an engine serves requests.

    The first pass is untimed: the engine does its setup, and its memory is traced. Then short passes warm up until
    steady.

    Args:
        engine: the engine.
        plan: the requests, the scheduler and the number of passes.
        enter: called with each phase as it begins, outside timed code.
        on_request: called after each timed pass with the times of its last request.
        now: a monotonic clock in seconds, for the request times of the naive scheduler.

    Raises:
        MeasurementError: a request failed or produced another number of tokens.
        UsageError: a prompt and its output exceed the model's limit.
    """
    asks = make_asks(plan, engine.vocabulary)
    _check_fits(asks, engine.longest)
    serve = _Scheduler(engine, plan, now)
    with _released(engine), collector_paused():
        enter(SERVING)
        peak = _follow_memory(lambda: serve(asks), engine.device)
        enter("warm-up")
        short = _shortened(asks[: plan.at_most])
        warmup = warm_up(lambda: serve(short).elapsed_s, cap=plan.warmup_cap)
        enter(TIMED_REQUESTS)
        timed = undisturbed(lambda: _timed(serve, asks, on_request), plan.repeats)
        settings = dict(engine.settings)
    return ServingMeasurement(
        plan=plan,
        longest_input=max(len(ask.prompt) for ask in asks),
        longest_output=max(ask.output_tokens for ask in asks),
        prompt_sha256=digest_asks(asks),
        settings=settings,
        warmup=warmup,
        passes=timed.requests,
        disturbed=timed.disturbed,
        peak=peak,
    )


class _Scheduler:
    """Serves all requests once, as the plan's scheduler does."""

    def __init__(self, engine: Engine, plan: ServingPlan, now: Callable[[], float]) -> None:
        self._engine = engine
        self._plan = plan
        self._now = now

    def __call__(self, asks: Sequence[Ask]) -> Pass:
        """Serve the requests; return them with their answers, in order.

        Raises:
            MeasurementError: a request failed, or produced more or fewer tokens than requested.
        """
        served = self._one_by_one(asks) if self._plan.scheduler == NAIVE else self._side_by_side(asks)
        for ask, one in zip(asks, served, strict=True):
            _check_produced(ask, one.answer)
        return Pass(served)

    def _one_by_one(self, asks: Sequence[Ask]) -> list[ServedRequest]:
        begin = self._now()
        served = []
        for ask in asks:
            offset = self._now() - begin
            served.append(ServedRequest(offset, _later(self._engine.alone(ask, self._plan.sampling), offset)))
        return served

    def _side_by_side(self, asks: Sequence[Ask]) -> list[ServedRequest]:
        answers = self._engine.serve(asks, at_most=self._plan.at_most, sampling=self._plan.sampling)
        return [ServedRequest(ask.arrival_s, answer) for ask, answer in zip(asks, answers, strict=True)]


@contextmanager
def _released(engine: Engine) -> Iterator[None]:
    """Release the engine's serving setup at the end, before anything else is measured or reported."""
    try:
        yield
    finally:
        engine.release()


def _follow_memory(serve: Callable[[], object], device: str | None) -> Peak:
    if device is None:
        serve()
        return Peak(None, None, None, "the engine runs in another process")
    with trace_memory(device, SERVING) as trace:
        serve()
    return trace.peaks[SERVING]


def _timed(
    serve: Callable[[Sequence[Ask]], Pass], asks: Sequence[Ask], on_request: Callable[[RequestTimes], None]
) -> tuple[Pass, float]:
    gc.collect()
    served = serve(asks)
    on_request(max(served.requests, key=lambda one: one.answer.last_s).times)
    return served, served.elapsed_s * _MS_PER_S


def _shortened(asks: Sequence[Ask]) -> list[Ask]:
    """The same prompts without arrival delays, with just enough output to show a trend."""
    return [replace(ask, output_tokens=min(ask.output_tokens, WARMUP_TOKENS), arrival_s=0.0) for ask in asks]


def _later(answer: Answer, offset_s: float) -> Answer:
    return replace(
        answer,
        sent_s=answer.sent_s + offset_s,
        first_s=answer.first_s + offset_s,
        last_s=answer.last_s + offset_s,
    )


def _check_produced(ask: Ask, answer: Answer) -> None:
    if answer.output_tokens != ask.output_tokens:
        raise MeasurementError(
            f"a request produced {answer.output_tokens} tokens; expected {ask.output_tokens}: other lengths are not "
            "comparable"
        )


def _check_fits(asks: Sequence[Ask], longest: int | None) -> None:
    if longest is None:
        return
    ask = max(asks, key=lambda one: len(one.prompt) + one.output_tokens)
    if len(ask.prompt) + ask.output_tokens > longest:
        raise UsageError(
            f"{len(ask.prompt)} input and {ask.output_tokens} output tokens of one request exceed the model's limit of "
            f"{longest} positions: use fewer"
        )
