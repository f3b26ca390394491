"""Measure generation of one shape on one model: warm up, time requests, then count operators and trace memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, repeat
from statistics import median
from typing import TYPE_CHECKING, Any

from pytest_llmperf.engines.conditions import measuring_conditions
from pytest_llmperf.engines.executions.execution import (
    Execution,
    Generated,
    OnToken,
    PreparedExecution,
    Request,
    check_produced,
    unnoticed,
)
from pytest_llmperf.engines.executions.execution_registry import find_execution
from pytest_llmperf.engines.executions.request import RequestTimes, Run, time_request
from pytest_llmperf.errors import UsageError
from pytest_llmperf.hardware.clock import ArrivalClock, Clock
from pytest_llmperf.hardware.cublas_workspaces import clear_workspaces
from pytest_llmperf.hardware.garbage_collector import collector_paused
from pytest_llmperf.hardware.memory import PeakMemory, Untraced, trace_memory
from pytest_llmperf.measure.cache_size import CacheSize, NewStates, cache_size
from pytest_llmperf.measure.contention import KeptRequests, undisturbed
from pytest_llmperf.measure.counting import check_countable
from pytest_llmperf.measure.cuda_activity import activity_figures
from pytest_llmperf.measure.injection import Injection, SmallerBatch, StepTimes, inject, reduced_batch_size
from pytest_llmperf.measure.progress import TIMED_REQUESTS
from pytest_llmperf.measure.prompt import RANDOM, Prompt, digest, prompt_ids, random_prompt
from pytest_llmperf.measure.warmup import warm_up
from pytest_llmperf.measure.work import WorkCounter, count_work
from pytest_llmperf.measure.work_figures import agreeing_figures, agreeing_phases, work_figures
from pytest_llmperf.metrics import Figure, Scalar
from pytest_llmperf.models.experts import experts_implementation, has_experts
from pytest_llmperf.models.model_class import is_encoder
from pytest_llmperf.models.own_model import config_of
from pytest_llmperf.models.position_limit import check_fits
from pytest_llmperf.models.weights import weights_bytes
from pytest_llmperf.storage.schema import PhaseProfile, PhaseWork, Warmup
from pytest_llmperf.validation import require_whole

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure, and how many requests."""

    batch_size: int
    input_tokens: int
    output_tokens: int
    execution: str | Execution
    requests: int
    warmup_cap: int
    seed: int = 0
    prompt: Prompt = RANDOM
    """``input_tokens`` is the length of random prompts; other prompts have their own length."""
    counted: bool = False
    """Whether to count the work of one request, and to make no warm-up and no timed request."""
    times_only: bool = False
    """Whether to make no request after the timed ones."""

    def __post_init__(self) -> None:
        find_execution(self.execution)
        for name in ("batch_size", "input_tokens", "output_tokens", "requests"):
            require_whole(name, getattr(self, name), at_least=1)
        require_whole("warmup_cap", self.warmup_cap, at_least=0)


@dataclass(frozen=True)
class Counts:
    """Deterministic results of one request."""

    token_digest: str
    cache: CacheSize | None
    """The KV cache or the recurrent states after the last token."""
    figures: Sequence[Figure] = ()
    """Figures of its work; none if operators are not dispatched one by one."""
    work: Mapping[str, PhaseWork] = field(default_factory=dict)
    """Its work by phase, without phases that depend on the prompt."""

    def figure(self, metric: str) -> Figure | None:
        """A figure by its metric's key; ``None`` if it was not counted."""
        return next((figure for figure in self.figures if figure.metric == metric), None)


@dataclass(frozen=True)
class _Untimed:
    """Results of the requests after the timed ones."""

    request: Request
    """The request with the plan's own prompt."""
    counts: Counts | None = None
    peaks: dict[str, PeakMemory] = field(default_factory=dict)
    figures: Sequence[Figure] = ()
    """The execution's own figures, and those of the profiler."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """All results of one plan on one model."""

    plan: Plan
    """The plan as requested."""
    batch_size: int
    """Sequences per request: the plan's batch size, unless an injection made it smaller."""
    clock: str
    prompt_sha256: str
    warmup: Warmup
    requests: list[RequestTimes]
    disturbed: int | None
    """Timed requests that CPU contention slowed; ``None`` where the system does not report it."""
    tokens_produced: int
    counts: Counts | None
    """``None`` if only times were measured."""
    weights_bytes: int
    """Bytes of the model as it was measured."""
    peaks: dict[str, PeakMemory]
    figures: Sequence[Figure]
    """The execution's own figures, and those of the profiler."""
    profile: Mapping[str, PhaseProfile]
    """Profile by phase, if requested."""
    settings: Mapping[str, Scalar] = field(default_factory=dict)
    """Settings of generation that change the work; part of the workload."""


NO_CLOCK = "none"
"""Recorded as the clock where no times are measured."""

FIRST_USE_TOKENS = 2
"""Output tokens of the request before a counted one: a prefill and a step."""

WARMUP_TOKENS = 16
"""Output tokens of warm-up requests after the first, which has full length: cheap, and enough to show a trend."""


def measure_generation(  # noqa: PLR0913  # the model, its device, and callbacks
    model: Any,
    plan: Plan,
    *,
    device: str,
    clock: Clock,
    tokenizer: Any | None = None,
    tokenizer_error: str = "",
    enter: Callable[[str], None] = lambda _phase: None,
    on_request: Callable[[RequestTimes], None] = lambda _times: None,
    injections: Sequence[Injection] = (),
    profile: Callable[[Request, int], Mapping[str, PhaseProfile]] = lambda _request, _output_tokens: {},
) -> Measurement:
    """Measure a loaded model.

    Args:
        model: a model of transformers that generates text, or a module with its forward signature, on ``device``.
        plan: the shape, the execution and the number of requests.
        device: the device of the prompts and of the memory trace.
        clock: the device's clock.
        tokenizer: the model's tokenizer; random prompts need none.
        tokenizer_error: why there is none.
        enter: called with each phase as it begins, outside timed code.
        on_request: called with each timed request after it ends.
        injections: what to inject into each request.
        profile: profiles one more request, if profiling is on; its second argument is the number of output tokens.

    Raises:
        MeasurementError: fewer tokens were produced than requested.
        UsageError: prompt and output exceed the model's limit, or its tokenizer cannot make the prompt.
    """
    prompt, asked = prepare_prompt(plan, model, tokenizer, tokenizer_error)
    prompt, prompt_sha256 = prompt.to(device), digest(prompt)
    plan = replace(asked, batch_size=reduced_batch_size(asked.batch_size, injections))
    execution = find_execution(plan.execution)
    clock = clock_of(execution, device, clock)
    if plan.counted:
        check_countable(execution.name)
    with measuring_conditions(), ExitStack() as stack:
        enter("setting up")
        clear_workspaces()  # before this measurement captures a graph
        prepared = stack.enter_context(execution.open(model, prompt[: plan.batch_size], plan.output_tokens, clock))
        request: Request = prepared.request
        if injections:
            _check_injections(injections, execution, prepared)
            steps = _step_times(request, plan, clock)
            request = inject(request, injections, model=model, steps=steps, device=device, clock=clock)
        with collector_paused():
            if plan.counted:
                check_countable(execution.name, dispatches=prepared.dispatches)
                warmup, timed = _nothing_timed(request, plan)
            else:
                enter("warm-up")
                warmup = _warm_up(request, plan, clock)
                enter(TIMED_REQUESTS)
                timed = _time_requests(partial(request, plan.output_tokens), plan, clock, on_request)
        requests = [times for times, _ in timed.requests]
        untimed = _Untimed(request)
        if not plan.times_only:
            untimed = _measure_untimed(
                prepared, plan, request, prompt, model=model, device=device, clock=clock, timed=requests, enter=enter
            )
        profiled = profile(untimed.request, plan.output_tokens)
    return Measurement(
        plan=asked,
        batch_size=plan.batch_size,
        clock=NO_CLOCK if plan.counted else clock.name,
        prompt_sha256=prompt_sha256,
        warmup=warmup,
        requests=requests,
        disturbed=timed.disturbed,
        tokens_produced=plan.batch_size * plan.output_tokens * plan.counted + sum(made for _, made in timed.requests),
        counts=untimed.counts,
        weights_bytes=weights_bytes(model),
        peaks=untimed.peaks,
        figures=untimed.figures,
        profile=profiled,
        settings=prepared.settings,
    )


def _measure_untimed(  # noqa: PLR0913  # a request, its model and device, and what was timed
    prepared: PreparedExecution,
    plan: Plan,
    request: Request,
    prompt: torch.Tensor,
    *,
    model: Any,
    device: str,
    clock: Clock,
    timed: Sequence[RequestTimes],
    enter: Callable[[str], None],
) -> _Untimed:
    """Count the work of a request and follow its memory; on CUDA, profile requests."""
    run = partial(request, plan.output_tokens)
    counts, peaks = _count_and_follow(prepared, plan, run, device, states=NewStates(model), enter=enter)
    other = None
    if source := _data_dependence(model, counts):
        request, another = _with_each_prompt(request, prompt, config_of(model), seed=plan.seed)
        if prepared.dispatches:
            counts = _checked_on(another, plan.output_tokens, counts, source)
        other = another if has_experts(model) else None
    activity = activity_figures(
        request,
        other=other,
        output_tokens=plan.output_tokens,
        tpot_ms=_median_tpot_ms(timed),
        device=device,
        clock=clock,
        enter=enter,
    )
    return _Untimed(request, counts, peaks, [*prepared.figures(), *activity])


def prepare_prompt(
    plan: Plan, model: Any, tokenizer: Any | None, tokenizer_error: str = ""
) -> tuple[torch.Tensor, Plan]:
    """The prompt's token ids on the host, of shape ``(batch_size, input_tokens)``, and the plan with their length.

    Raises:
        UsageError: the model cannot take them, or its tokenizer cannot make them.
    """
    config = config_of(model)
    prompt = prompt_ids(
        plan.prompt,
        config,
        tokenizer,
        batch_size=plan.batch_size,
        input_tokens=plan.input_tokens,
        seed=plan.seed,
        tokenizer_error=tokenizer_error,
    )
    plan = replace(plan, input_tokens=prompt.shape[1])
    check_fits(config, input_tokens=plan.input_tokens, output_tokens=plan.output_tokens)
    check_decoder(config, model)
    return prompt, plan


def clock_of(execution: Execution, device: str, clock: Clock) -> Clock:
    """The clock for an execution's tokens: the device's, unless tokens are handed over late."""
    return ArrivalClock(clock.synchronize) if device == "mps" and execution.name == "generate" else clock


def check_decoder(config: Any, model: Any) -> None:
    """Reject an encoder, in which each token attends to later ones, so that a cache makes its tokens wrong.

    Raises:
        UsageError: the model's config says that it is no decoder.
    """
    if is_encoder(config):
        raise UsageError(
            f"{type(model).__name__} is an encoder (is_decoder is false in its config.json), so its tokens attend to "
            "later ones: expected a model that decodes, such as one with is_decoder true"
        )


def _check_injections(injections: Sequence[Injection], execution: Execution, prepared: PreparedExecution) -> None:
    """Reject injections into steps that are not single forwards of the model."""
    heavy = [injection for injection in injections if not isinstance(injection, SmallerBatch)]
    if heavy and not prepared.dispatches:
        raise UsageError(
            f"--llmperf-inject {heavy[0]}: execution {execution.name!r} does not run one forward of the model per "
            "step: multiply a metric instead, such as tpot:+15%"
        )


_REQUESTS_TO_SETTLE, _REQUESTS_TO_SIZE = 2, 5


def _step_times(request: Request, plan: Plan, clock: Clock) -> StepTimes:
    """Prefill and decode step times without injections, used to size the injected work."""
    run = partial(request, min(WARMUP_TOKENS, plan.output_tokens))
    times = [time_request(run, clock)[0] for _ in range(_REQUESTS_TO_SETTLE + _REQUESTS_TO_SIZE)][_REQUESTS_TO_SETTLE:]
    return StepTimes(
        prefill_ms=median(one.ttft_ms for one in times), decode_ms=median(one.step_ms or 0.0 for one in times)
    )


def _warm_up(request: Request, plan: Plan, clock: Clock) -> Warmup:
    """Warm up: one full-length request for first-use setup, then short ones until steady."""
    short = min(WARMUP_TOKENS, plan.output_tokens)
    lengths = chain([plan.output_tokens], repeat(short))
    return warm_up(lambda: time_request(partial(request, next(lengths)), clock)[0].e2e_ms, cap=plan.warmup_cap)


def _time_requests(
    run: Run, plan: Plan, clock: Clock, on_request: Callable[[RequestTimes], None]
) -> KeptRequests[tuple[RequestTimes, int]]:
    """The timed requests, and the number of tokens each produced."""

    def request() -> tuple[tuple[RequestTimes, int], float]:
        times, generated = time_request(run, clock)
        _check_produced(generated, plan, times.output_tokens)
        on_request(times)
        return (times, generated.tokens.numel()), times.wall_ms

    return undisturbed(request, plan.requests)


def use_first(request: Request, plan: Plan) -> None:
    """Make one short request, whose first forwards do what later ones do not: bitsandbytes packs weights in them."""
    request(min(FIRST_USE_TOKENS, plan.output_tokens), unnoticed)


def _nothing_timed(request: Request, plan: Plan) -> tuple[Warmup, KeptRequests[tuple[RequestTimes, int]]]:
    use_first(request, plan)
    return Warmup(requests=0, steady=False, drift=None), KeptRequests([], None)


def _count_and_follow(  # noqa: PLR0913  # a request, its device, and what is followed
    prepared: PreparedExecution, plan: Plan, run: Run, device: str, *, states: NewStates, enter: Callable[[str], None]
) -> tuple[Counts, dict[str, PeakMemory]]:
    """Make one untimed request; count its operators and trace memory by phase.

    The request's output, including its KV cache, is freed on return.
    """
    enter("prefill")
    counting = count_work() if prepared.dispatches else nullcontext(WorkCounter())
    # Peaks depend on the machine: on its threads, and on the workspaces of its kernels.
    following = nullcontext(Untraced()) if plan.counted else trace_memory(device, "prefill")
    with following as trace, counting as count:

        def on_token(came: int = 1, /) -> None:
            if not count.tokens and plan.output_tokens > came:
                with count.paused():  # the trace dispatches operators of its own, which are not the model's
                    enter("decode")
                    trace.enter("decode")
            count.on_token(came)

        generated = run(on_token)
    _check_produced(generated, plan, sum(count.tokens))
    counts = Counts(
        token_digest=digest(generated.tokens),
        cache=cache_size(generated.cache, plan.input_tokens + plan.output_tokens - 1, states.find()),
        figures=work_figures(count) if prepared.dispatches else (),
        work=count.phases() if prepared.dispatches else {},
    )
    return counts, trace.peaks


_OUTLIERS = "bitsandbytes::int8_mixed_scaled_mm"
"""Multiplies the columns with outliers in the activations once more, and allocates space for them."""


def _data_dependence(model: Any, counts: Counts) -> str:
    """Why work may depend on the prompt; empty if nothing speaks for it."""
    if has_experts(model):  # which of them run, and how many, depends on the prompt
        return f"experts implementation {experts_implementation(model)}"
    found = any(_OUTLIERS in phase.operators for phase in counts.work.values())
    return f"outliers of {_OUTLIERS}" if found else ""


@dataclass(frozen=True)
class _WithPrompt:
    """A request with other prompt tokens of the same shape.

    Every execution reads the prompt when a request begins, so it is replaced in place: nothing is set up again.
    """

    request: Request
    prompt: torch.Tensor
    ids: torch.Tensor

    def __call__(self, output_tokens: int, on_token: OnToken) -> Generated:
        self.put()
        return self.request(output_tokens, on_token)

    def put(self) -> None:
        """Replace the prompt."""
        self.prompt.copy_(self.ids)


def _with_each_prompt(
    request: Request, prompt: torch.Tensor, config: Any, *, seed: int
) -> tuple[_WithPrompt, _WithPrompt]:
    """The request with its own prompt, and with another random one of the same shape."""
    batch_size, input_tokens = prompt.shape
    random = random_prompt(config, batch_size=batch_size, input_tokens=input_tokens, seed=seed + 1)
    return _WithPrompt(request, prompt, prompt.clone()), _WithPrompt(request, prompt, random.to(prompt.device))


def _checked_on(other: _WithPrompt, output_tokens: int, counts: Counts, source: str) -> Counts:
    """The counts, without figures and phases that another prompt changes."""
    other.put()  # outside: it is not the model's work
    with count_work() as count:
        other.request(output_tokens, count.on_token)
    return replace(
        counts,
        figures=agreeing_figures(counts.figures, work_figures(count), source),
        work=agreeing_phases(counts.work, count.phases()),
    )


def _median_tpot_ms(requests: Sequence[RequestTimes]) -> float | None:
    tpots = [tpot for times in requests if (tpot := times.tpot_ms) is not None]
    return median(tpots) if tpots else None


def _check_produced(generated: Generated, plan: Plan, counted: int) -> None:
    check_produced(generated, batch_size=plan.batch_size, output_tokens=plan.output_tokens, counted=counted)
