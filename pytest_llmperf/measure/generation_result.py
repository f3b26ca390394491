"""Convert a generation measurement to its stored form: workload, observation and one cell per metric."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from pytest_llmperf.engines.executions.execution_registry import find_execution
from pytest_llmperf.engines.executions.request import RequestTimes
from pytest_llmperf.hardware.memory import PeakMemory
from pytest_llmperf.measure.figures import cells_of, gap_percentiles, memory_figures, timed
from pytest_llmperf.measure.generation import Counts, Measurement, Plan
from pytest_llmperf.metrics import METRICS, NO_CACHE, NO_DECODE, SEVERAL_AT_A_TIME, Figure, Scalar
from pytest_llmperf.stats.summary import summarize
from pytest_llmperf.storage.comparability import is_portable
from pytest_llmperf.storage.schema import Observation, TestResult, Workload

if TYPE_CHECKING:
    from pytest_llmperf.models.load import LoadedModel


@dataclass(frozen=True)
class LoadFacts:
    """Time and memory of loading a model, measured once per run; ``peak.reason`` says why one is ``None``."""

    load_ms: float | None
    peak: PeakMemory


COUNTED_REQUESTS = 1
"""Requests of a measurement that only counts."""

NOT_LOADED = LoadFacts(None, PeakMemory(reason="the test built the model itself"))
"""Facts of a model that was not loaded here."""


def test_result(measured: Measurement, loaded: LoadedModel, facts: LoadFacts, *, test: str, run_id: str) -> TestResult:
    """The result of one test, as added to its run."""
    workload = _workload(measured, loaded)
    figures = _figures(measured, facts)
    if measured.plan.counted:
        figures = (figure for figure in figures if is_portable(METRICS[figure.metric], workload))
    return TestResult(
        workload=workload,
        observation=_observation(measured, loaded, test=test, run_id=run_id, workload=workload),
        cells=cells_of(figures, test=test, run_id=run_id, workload=workload),
        samples=_samples(measured),
        work=dict(measured.counts.work) if measured.counts else {},
        profile=dict(measured.profile),
    )


test_result.__test__ = False  # type: ignore[attr-defined]  # pytest would collect a function of this name


def _figures(measured: Measurement, facts: LoadFacts) -> Iterator[Figure]:
    if not measured.plan.counted:
        samples = _request_samples(measured.requests)
        yield from (timed(metric, values, lacking=_lacking(measured)) for metric, values in samples.items())
        yield from _informative(measured, facts)
    if measured.counts:
        yield from _memory(measured, measured.counts, facts)
        yield from measured.counts.figures
        yield Figure("token_digest", measured.counts.token_digest)
    yield from measured.figures


def _samples(measured: Measurement) -> dict[str, list[float]]:
    if measured.plan.counted:
        return {}
    gaps = list(chain.from_iterable(times.itl_ms for times in measured.requests))
    return _request_samples(measured.requests) | {"itl_ms": gaps}


def _workload(measured: Measurement, loaded: LoadedModel) -> Workload:
    return workload_of(measured.plan, loaded, prompt_sha256=measured.prompt_sha256, settings=measured.settings)


def workload_of(plan: Plan, loaded: LoadedModel, *, prompt_sha256: str, settings: Mapping[str, Scalar]) -> Workload:
    """The workload of a plan on a model; ``settings`` are those of generation that change the work."""
    execution = find_execution(plan.execution)
    return Workload(
        engine="transformers",
        model=loaded.name,
        revision=loaded.revision,
        quantization=loaded.quantization,
        dtype=loaded.dtype,
        attention=loaded.attention,
        execution=execution.name,
        batch_size=plan.batch_size,
        input_tokens=plan.input_tokens,
        output_tokens=plan.output_tokens,
        sampling="greedy",
        prompt_sha256=prompt_sha256,
        settings={**loaded.settings, **execution.settings, **settings},
    )


def _observation(
    measured: Measurement, loaded: LoadedModel, *, test: str, run_id: str, workload: Workload
) -> Observation:
    return Observation(
        run=run_id,
        test=test,
        workload=workload.hash,
        clock=measured.clock,
        requests=COUNTED_REQUESTS if measured.plan.counted else len(measured.requests),
        disturbed_requests=measured.disturbed,
        tokens_produced=measured.tokens_produced,
        attention_requested=loaded.spec.attention if loaded.spec else None,
        warmup=measured.warmup,
    )


def _request_samples(requests: list[RequestTimes]) -> dict[str, list[float]]:
    tpots = [tpot for times in requests if (tpot := times.tpot_ms) is not None]
    return {
        "tpot_ms": tpots,
        "ttft_ms": [times.ttft_ms for times in requests],
        "e2e_ms": [times.e2e_ms for times in requests],
        "e2e_wall_ms": [times.wall_ms for times in requests],
    }


def _lacking(measured: Measurement) -> str:
    """Why a figure of decode, or of single tokens, is missing."""
    return NO_DECODE if measured.plan.output_tokens == 1 else SEVERAL_AT_A_TIME


def _informative(measured: Measurement, facts: LoadFacts) -> Iterator[Figure]:
    yield Figure("load_ms", facts.load_ms, "" if facts.load_ms is not None else facts.peak.reason)
    yield from _rates(measured)
    gaps = list(chain.from_iterable(times.itl_ms for times in measured.requests))
    yield from gap_percentiles(gaps, requests=len(measured.requests), lacking=_lacking(measured))


def _rates(measured: Measurement) -> Iterator[Figure]:
    prompt_tokens = measured.batch_size * measured.plan.input_tokens
    prefill = [1000 * prompt_tokens / times.ttft_ms for times in measured.requests]
    yield Figure("prefill_tokens_per_s", summarize(prefill).value, count=len(prefill))
    decode = [1000 * measured.batch_size / tpot for times in measured.requests if (tpot := times.tpot_ms)]
    if decode:
        yield Figure("decode_tokens_per_s", summarize(decode).value, count=len(decode))
    else:
        yield Figure("decode_tokens_per_s", None, _lacking(measured))


def _memory(measured: Measurement, counts: Counts, facts: LoadFacts) -> Iterator[Figure]:
    yield Figure("weights_bytes", measured.weights_bytes)
    cache = counts.cache
    yield Figure("kv_cache_bytes", cache.total_bytes) if cache else Figure("kv_cache_bytes", None, NO_CACHE)
    no_decode = PeakMemory(None, None, None, NO_DECODE)
    for phase, peak in {"decode": no_decode, "load": facts.peak, **measured.peaks}.items():
        yield from memory_figures(phase, peak)
