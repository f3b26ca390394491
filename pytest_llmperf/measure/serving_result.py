"""Convert a serving measurement to its stored form: workload, observation and one cell per metric."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from statistics import median

from pytest_llmperf.engines.engine import Engine
from pytest_llmperf.hardware.clock import HostClock
from pytest_llmperf.measure.figures import cells_of, gap_percentiles, memory_figures, timed
from pytest_llmperf.measure.serving_measurement import SERVING, Pass, ServingMeasurement
from pytest_llmperf.measure.serving_plan import NAIVE
from pytest_llmperf.metrics import SEVERAL_AT_A_TIME, Figure
from pytest_llmperf.storage.schema import Observation, TestResult, Workload

UNREPORTED = "unknown"
_NO_DECODE = "no request has a second output token"
_UNREPORTED = (
    "the engine reported no cached prompt tokens (vLLM's server does with --enable-prompt-tokens-details, SGLang's "
    "with --enable-cache-report)"
)


def serving_result(measured: ServingMeasurement, engine: Engine, *, test: str, run_id: str) -> TestResult:
    """The result of one test, as added to its run."""
    workload = _workload(measured, engine)
    return TestResult(
        workload=workload,
        observation=_observation(measured, test=test, run_id=run_id, workload=workload),
        cells=cells_of(_figures(measured), test=test, run_id=run_id, workload=workload),
        samples=_samples(measured),
    )


def _workload(measured: ServingMeasurement, engine: Engine) -> Workload:
    plan, model = measured.plan, engine.model
    return Workload(
        engine=engine.name,
        model=model["model"] or UNREPORTED,
        revision=model["revision"],
        quantization=model["quantization"] or UNREPORTED,
        dtype=model["dtype"] or UNREPORTED,
        attention=model["attention"] or UNREPORTED,
        execution=plan.scheduler,
        batch_size=plan.max_concurrency,
        input_tokens=measured.longest_input,
        output_tokens=measured.longest_output,
        sampling=str(plan.sampling),
        prompt_sha256=measured.prompt_sha256,
        settings={**plan.settings, **measured.settings},
    )


def _observation(measured: ServingMeasurement, *, test: str, run_id: str, workload: Workload) -> Observation:
    requests = measured.plan.requests
    return Observation(
        run=run_id,
        test=test,
        workload=workload.hash,
        clock=HostClock.name,
        requests=len(measured.passes) * requests,
        disturbed_requests=None if measured.disturbed is None else measured.disturbed * requests,
        tokens_produced=sum(one.output_tokens for one in measured.passes),
        attention_requested=None,
        warmup=measured.warmup,
    )


def _figures(measured: ServingMeasurement) -> Iterator[Figure]:
    passes = measured.passes
    yield timed("output_tokens_per_s", [one.output_tokens / one.elapsed_s for one in passes], lacking="")
    totals = [(one.input_tokens + one.output_tokens) / one.elapsed_s for one in passes]
    yield timed("total_tokens_per_s", totals, lacking="")
    for metric in ("tpot_ms", "ttft_ms", "e2e_ms"):
        medians = [median(values) for one in passes if (values := _of_pass(one, metric))]
        if min(medians, default=1.0) > 0:
            yield timed(metric, medians, lacking=_NO_DECODE)
        else:  # all tokens of a request came in one read of a busy client
            yield Figure(metric, None, SEVERAL_AT_A_TIME)
    gaps, why = _gaps(measured)
    yield from gap_percentiles(gaps, requests=len(passes) * measured.plan.requests, lacking=why)
    if measured.plan.scheduler != NAIVE:
        yield Figure("lateness_ms", median(median(_of_pass(one, "lateness_ms")) for one in passes), count=len(passes))
    yield from _prefix_hits(measured)
    yield from memory_figures(SERVING, measured.peak)


def _prefix_hits(measured: ServingMeasurement) -> Iterator[Figure]:
    """The share of cached prompt tokens, where prompts share a prefix or the engine reports it unasked."""
    known = [one.cached_tokens for one in measured.passes if one.cached_tokens is not None]
    asked = sum(one.input_tokens for one in measured.passes)
    if known:
        yield Figure("prefix_hit_share", sum(known) / asked, count=len(measured.passes))
    elif measured.plan.shared_prefix:
        yield Figure("prefix_hit_share", None, _UNREPORTED)


def _samples(measured: ServingMeasurement) -> dict[str, list[float]]:
    """Samples of every request of every pass, in order."""
    names = ("tpot_ms", "ttft_ms", "e2e_ms", "lateness_ms")
    samples = {name: list(chain.from_iterable(_of_pass(one, name) for one in measured.passes)) for name in names}
    return samples | {"itl_ms": _gaps(measured)[0]}


def _of_pass(one: Pass, figure: str) -> list[float]:
    values = (getattr(request, figure) for request in one.requests)
    return [value for value in values if value is not None]


def _gaps(measured: ServingMeasurement) -> tuple[list[float], str]:
    """Milliseconds between consecutive tokens, or none and a reason: if one gap is unknown, the rest are biased."""
    gaps = [request.response.gaps_s for one in measured.passes for request in one.requests]
    known = [gap for gap in gaps if gap is not None]
    if len(known) < len(gaps):
        return [], SEVERAL_AT_A_TIME
    return [1000 * gap for gap in chain.from_iterable(known)], _NO_DECODE
