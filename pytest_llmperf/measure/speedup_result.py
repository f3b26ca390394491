"""Speedup of one workload over another in the same test, as a metric of its own that can gate."""

from __future__ import annotations

from pytest_llmperf.errors import MeasurementError, UsageError
from pytest_llmperf.measure.figures import cells_of
from pytest_llmperf.metrics import METRICS, Better, Figure, primary_metric
from pytest_llmperf.storage.schema import CellRun, TestResult, Warmup


def speedup_of(result: TestResult, *, over: TestResult) -> TestResult:
    """Ratio of the primary metrics of two workloads, above 1 where ``result`` is faster than ``over``.

    Its workload is that of ``result`` plus the other's hash, so a speedup over another workload is another figure.

    Raises:
        UsageError: the two have different primary metrics, or are the same workload.
        MeasurementError: one of them has no value.
    """
    metric = primary_metric([cell.metric for cell in result.cells])
    other = primary_metric([cell.metric for cell in over.cells])
    if metric is not other or metric is METRICS["speedup_ratio"] or result.workload == over.workload:
        raise UsageError(
            f"speedup of {_named(result)} over {_named(over)}: expected two different workloads "
            "with the same primary metric"
        )
    now, then = _number(result, metric.key), _number(over, metric.key)
    ratio = now / then if metric.better is Better.LARGER else then / now
    settings = {**result.workload.settings, "speedup_over": over.workload.hash}
    workload = result.workload.model_copy(update={"settings": settings})
    observation = result.observation.model_copy(
        update={
            "workload": workload.hash,
            "warmup": _both(result.observation.warmup, over.observation.warmup),
            "invalid": result.observation.invalid or over.observation.invalid,
        }
    )
    return TestResult(
        workload=workload,
        observation=observation,
        cells=cells_of(
            [Figure("speedup_ratio", ratio)], test=observation.test, run_id=observation.run, workload=workload
        ),
    )


def _named(result: TestResult) -> str:
    metric = primary_metric([cell.metric for cell in result.cells])
    return f"{metric.name} of {result.workload.execution} {result.workload.hash}"


def _number(result: TestResult, metric: str) -> float:
    cell: CellRun = next(one for one in result.cells if one.metric == metric)
    if not isinstance(cell.value, int | float) or cell.value <= 0:
        raise MeasurementError(f"speedup: {metric} is {cell.value}: {cell.reason or 'expected a number above 0'}")
    return cell.value


def _both(mine: Warmup, other: Warmup) -> Warmup:
    """The less steady of two warm-ups."""
    return other if mine.steady else mine
