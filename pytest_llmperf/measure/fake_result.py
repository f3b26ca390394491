"""Convert counts of a fake device to their stored form. Times, and what an allocator reports, are absent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pytest_llmperf.hardware.data_sheet import DataSheet
from pytest_llmperf.hardware.fake_device import FakeDevice
from pytest_llmperf.measure.fake_generation import FakeMeasurement
from pytest_llmperf.measure.figures import cells_of
from pytest_llmperf.measure.generation import NO_CLOCK
from pytest_llmperf.measure.generation_result import COUNTED_REQUESTS, NOT_LOADED, workload_of
from pytest_llmperf.measure.peaks import sheet_peaks
from pytest_llmperf.measure.roofline_time import roofline_figures
from pytest_llmperf.metrics import NO_CACHE, NO_DECODE, Figure, Scalar
from pytest_llmperf.storage.schema import Observation, TestResult, Warmup
from pytest_llmperf.text import plural, some

if TYPE_CHECKING:
    from pytest_llmperf.models.load import LoadedModel

_MOST_LINES = 3


def fake_result(  # noqa: PLR0913  # what was counted, of what, where, and for which test
    measured: FakeMeasurement,
    loaded: LoadedModel,
    device: FakeDevice,
    *,
    load_peak_bytes: int | None,
    test: str,
    run_id: str,
) -> TestResult:
    """The result of one test, as added to its run; ``load_peak_bytes`` is None for a model that was not loaded."""
    plan = measured.plan
    workload = workload_of(plan, loaded, prompt_sha256=measured.prompt_sha256, settings=measured.settings)
    observation = Observation(
        run=run_id,
        test=test,
        workload=workload.hash,
        clock=NO_CLOCK,
        requests=COUNTED_REQUESTS,
        tokens_produced=0 if measured.reason else plan.batch_size * plan.output_tokens,
        attention_requested=loaded.spec.attention if loaded.spec else None,
        warmup=Warmup(requests=0, steady=True, drift=None),
        conditions=_conditions(measured),
    )
    figures = _figures(measured, device, load_peak_bytes)
    return TestResult(
        workload=workload,
        observation=observation,
        cells=cells_of(figures, test=test, run_id=run_id, workload=workload),
        work=dict(measured.work),
    )


def _figures(measured: FakeMeasurement, device: FakeDevice, load_peak_bytes: int | None) -> Iterator[Figure]:
    yield Figure("weights_bytes", measured.weights_bytes)
    yield _or_reason("load_peak_allocated_bytes", load_peak_bytes, NOT_LOADED.peak.reason)
    cache = measured.cache.total_bytes if measured.cache else None
    yield _or_reason("kv_cache_bytes", cache, measured.reason or NO_CACHE)
    for phase, otherwise in {"prefill": "", "decode": NO_DECODE}.items():
        yield _or_reason(f"{phase}_peak_allocated_bytes", measured.peaks.get(phase), measured.reason or otherwise)
    if measured.reason:
        yield Figure("operators_per_token", None, measured.reason)
    yield from measured.figures
    if device.kind != "cpu":
        yield _waits_per_token(measured)
    if device.sheet:
        yield from _of_sheet(measured, device.sheet, load_peak_bytes)


def _or_reason(metric: str, value: float | None, reason: str) -> Figure:
    return Figure(metric, value, reason if value is None else "")


def _waits_per_token(measured: FakeMeasurement) -> Figure:
    """Copies between host and device that the host waits for: CUDA synchronizes a stream for each of them."""
    steps = measured.plan.output_tokens - 1
    if measured.reason or not steps:
        return Figure("syncs_per_token", None, measured.reason or NO_DECODE)
    return Figure("syncs_per_token", len(measured.waits["decode"]) / steps)


def _of_sheet(measured: FakeMeasurement, sheet: DataSheet, load_peak_bytes: int | None) -> Iterator[Figure]:
    peak = max([load_peak_bytes or 0, *measured.peaks.values()])
    share = None if measured.reason else peak / sheet.memory_bytes
    yield _or_reason("memory_share", share, measured.reason)
    if measured.reason:
        yield from (Figure(f"roofline_{name}_ms", None, measured.reason) for name in ("ttft", "tpot"))
    else:
        yield from roofline_figures(measured.work, sheet_peaks(sheet))


def _conditions(measured: FakeMeasurement) -> dict[str, Scalar]:
    """Where the host waited for the device, by phase."""
    return {f"waits_{phase}": _lines(lines) for phase, lines in measured.waits.items() if lines}


def _lines(lines: list[str]) -> str:
    counted = [f"{line} x{times}" if times > 1 else line for line, times in Counter(lines).most_common()]
    return f"{plural(len(lines), 'time')}: {some(counted, _MOST_LINES)}"
