"""Measure serving throughput and latency: warm up, then passes over the same requests, with one of three schedulers."""

from __future__ import annotations

import gc
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count, repeat

from pytest_llmperf.engines.engine import Engine, EngineRequest, EngineResponse
from pytest_llmperf.engines.executions.request import RequestTimes
from pytest_llmperf.errors import MeasurementError, UsageError
from pytest_llmperf.hardware.clock import MS_PER_S
from pytest_llmperf.hardware.garbage_collector import collector_paused
from pytest_llmperf.hardware.memory import PeakMemory, trace_memory
from pytest_llmperf.measure.contention import undisturbed
from pytest_llmperf.measure.generation import WARMUP_TOKENS
from pytest_llmperf.measure.progress import TIMED_REQUESTS
from pytest_llmperf.measure.serving_plan import NAIVE, ServingPlan, digest_requests, make_requests
from pytest_llmperf.measure.warmup import warm_up
from pytest_llmperf.metrics import Scalar
from pytest_llmperf.storage.schema import Warmup

SERVING = "serving"
"""Phase name of the serving memory peak."""


@dataclass(frozen=True)
class ServedRequest:
    """A request and its response."""

    arrival_s: float
    """When it was due. Latencies are measured from here, not from when it was sent."""
    response: EngineResponse

    @property
    def ttft_ms(self) -> float:
        """Due time to first output token."""
        return (self.response.first_s - self.arrival_s) * MS_PER_S

    @property
    def e2e_ms(self) -> float:
        """Due time to last output token."""
        return (self.response.last_s - self.arrival_s) * MS_PER_S

    @property
    def tpot_ms(self) -> float | None:
        """(last token - first token) / tokens after those that came first; ``None`` if there are none."""
        later = self.response.output_tokens - self.response.first_tokens
        return (self.response.last_s - self.response.first_s) * MS_PER_S / later if later else None

    @property
    def times(self) -> RequestTimes:
        """Request times for callbacks, with every gap equal to the request's TPOT."""
        later = self.response.output_tokens - self.response.first_tokens
        gaps = [] if self.tpot_ms is None else [self.tpot_ms] * later
        return RequestTimes(self.ttft_ms, gaps, self.e2e_ms, (self.response.first_tokens, *(1 for _ in gaps)))

    @property
    def lateness_ms(self) -> float:
        """Due time to send time."""
        return (self.response.sent_s - self.arrival_s) * MS_PER_S


@dataclass(frozen=True)
class Pass:
    """One pass over all requests, on one time axis."""

    requests: Sequence[ServedRequest]

    @property
    def elapsed_s(self) -> float:
        """First arrival to last token."""
        return max(one.response.last_s for one in self.requests) - min(one.arrival_s for one in self.requests)

    @property
    def output_tokens(self) -> int:
        """Tokens produced."""
        return sum(one.response.output_tokens for one in self.requests)

    @property
    def input_tokens(self) -> int:
        """Prompt tokens, as counted by the engine."""
        return sum(one.response.input_tokens for one in self.requests)

    @property
    def cached_tokens(self) -> int | None:
        """Prompt tokens from a prefix cache; ``None`` if the engine reports none. Servers omit a count of 0."""
        known = [one.response.cached_tokens for one in self.requests if one.response.cached_tokens is not None]
        return sum(known) if known else None


@dataclass(frozen=True, kw_only=True)
class ServingMeasurement:
    """All results of one plan on one engine."""

    plan: ServingPlan
    longest_input: int
    longest_output: int
    prompt_sha256: str
    """Digest of all prompts and output lengths of the first pass."""
    settings: dict[str, Scalar]
    """The engine's settings while it served."""
    warmup: Warmup
    passes: Sequence[Pass]
    disturbed: int | None
    """Passes that CPU contention slowed; ``None`` if unknown."""
    peak: PeakMemory


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
    steady. Each pass has the same prompts. With a shared prefix, only the prefix is the same, even in another run: a
    server may keep its cache from one run to the next.

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
    requests = make_requests(plan, engine.vocabulary)
    renewals = map("{}-{}".format, repeat(uuid.uuid4().hex), count())

    def renewed() -> list[EngineRequest]:
        return make_requests(plan, engine.vocabulary, renewal=next(renewals)) if plan.shared_prefix else requests

    _check_fits(requests, engine.longest)
    serve = _Scheduler(engine, plan, now)
    with _released(engine), collector_paused():
        enter(SERVING)
        peak = _follow_memory(lambda: serve(requests), engine.device)
        enter("warm-up")
        warmup = warm_up(lambda: serve(_shortened(renewed()[: plan.max_concurrency])).elapsed_s, cap=plan.warmup_cap)
        enter(TIMED_REQUESTS)
        timed = undisturbed(lambda: _timed(serve, renewed(), on_request), plan.repeats)
        settings = dict(engine.settings)
    return ServingMeasurement(
        plan=plan,
        longest_input=max(len(request.prompt) for request in requests),
        longest_output=max(request.output_tokens for request in requests),
        prompt_sha256=digest_requests(requests),
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

    def __call__(self, requests: Sequence[EngineRequest]) -> Pass:
        """Serve the requests; return them with their responses, in order.

        Raises:
            MeasurementError: a request failed, or produced more or fewer tokens than requested.
        """
        served = self._one_by_one(requests) if self._plan.scheduler == NAIVE else self._side_by_side(requests)
        for request, one in zip(requests, served, strict=True):
            _check_produced(request, one.response)
        return Pass(served)

    def _one_by_one(self, requests: Sequence[EngineRequest]) -> list[ServedRequest]:
        begin = self._now()
        served = []
        for request in requests:
            offset = self._now() - begin
            served.append(ServedRequest(offset, _later(self._engine.serve_one(request, self._plan.sampling), offset)))
        return served

    def _side_by_side(self, requests: Sequence[EngineRequest]) -> list[ServedRequest]:
        responses = self._engine.serve(
            requests, max_concurrency=self._plan.max_concurrency, sampling=self._plan.sampling
        )
        return [
            ServedRequest(request.arrival_s, response) for request, response in zip(requests, responses, strict=True)
        ]


@contextmanager
def _released(engine: Engine) -> Iterator[None]:
    """Release the engine's serving setup at the end, before anything else is measured or reported."""
    try:
        yield
    finally:
        engine.release()


def _follow_memory(serve: Callable[[], object], device: str | None) -> PeakMemory:
    if device is None:
        serve()
        return PeakMemory(None, None, None, "the engine runs in another process")
    with trace_memory(device, SERVING) as trace:
        serve()
    return trace.peaks[SERVING]


def _timed(
    serve: Callable[[Sequence[EngineRequest]], Pass],
    requests: Sequence[EngineRequest],
    on_request: Callable[[RequestTimes], None],
) -> tuple[Pass, float]:
    gc.collect()
    served = serve(requests)
    on_request(max(served.requests, key=lambda one: one.response.last_s).times)
    return served, served.elapsed_s * MS_PER_S


def _shortened(requests: Sequence[EngineRequest]) -> list[EngineRequest]:
    """The same prompts without arrival delays, with just enough output to show a trend."""
    return [
        replace(request, output_tokens=min(request.output_tokens, WARMUP_TOKENS), arrival_s=0.0) for request in requests
    ]


def _later(response: EngineResponse, offset_s: float) -> EngineResponse:
    return replace(
        response,
        sent_s=response.sent_s + offset_s,
        first_s=response.first_s + offset_s,
        last_s=response.last_s + offset_s,
    )


def _check_produced(request: EngineRequest, response: EngineResponse) -> None:
    if response.output_tokens != request.output_tokens:
        raise MeasurementError(
            f"a request produced {response.output_tokens} tokens; expected {request.output_tokens}: "
            "other lengths are not comparable"
        )


def _check_fits(requests: Sequence[EngineRequest], longest: int | None) -> None:
    if longest is None:
        return
    request = max(requests, key=lambda one: len(one.prompt) + one.output_tokens)
    if len(request.prompt) + request.output_tokens > longest:
        raise UsageError(
            f"{len(request.prompt)} input and {request.output_tokens} output tokens of one request exceed the "
            f"engine's limit of {longest} tokens: use fewer"
        )
