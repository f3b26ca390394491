"""Export a run's figures for dashboards: github-action-benchmark and Bencher."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from pytest_llmperf.errors import UsageError
from pytest_llmperf.metrics import METRICS, Better, Metric
from pytest_llmperf.storage.schema import Workload
from pytest_llmperf.text import printable
from pytest_llmperf.verdict.verdict_file import CellVerdict, TestVerdicts, VerdictFile


@dataclass(frozen=True)
class ExportedPoint:
    """One figure of a run; ``value`` is in the metric's unit."""

    test: str
    cell: CellVerdict
    value: float
    workload: Workload | None
    """``None`` if the verdict is from a comparison of two revisions."""
    several: bool
    """Whether the test measured several workloads."""

    @property
    def metric(self) -> Metric:
        """The figure's metric."""
        return METRICS[self.cell.metric]

    @property
    def name(self) -> str:
        """The test, with the workload's hash if it measured several; unique in a run together with the metric."""
        return printable(f"{self.test} {self.cell.workload}" if self.several else self.test)


def points(verdicts: VerdictFile) -> list[ExportedPoint]:
    """Return every judged figure that is a number.

    Raises:
        UsageError: there is none, or ``--llmperf-inject`` changed them.
    """
    if verdicts.injected:
        injected = printable(", ".join(verdicts.injected))
        raise UsageError(
            f"{injected} was injected, and such figures are not exported: measure without --llmperf-inject"
        )
    found = [point for test in verdicts.tests for point in _of_test(test)]
    if not found:
        raise UsageError("there are no figures to export: no test measured, or --llmperf-measure-only judged none")
    return found


def custom_smaller_is_better(verdicts: VerdictFile) -> str:
    """Format for github-action-benchmark with ``tool: customSmallerIsBetter``."""
    return _custom(verdicts, Better.SMALLER)


def custom_bigger_is_better(verdicts: VerdictFile) -> str:
    """Format for github-action-benchmark with ``tool: customBiggerIsBetter``."""
    return _custom(verdicts, Better.LARGER)


def bencher(verdicts: VerdictFile) -> str:
    """Format as Bencher Metric Format: a test's figures by metric.

    Format: https://bencher.dev/docs/reference/bencher-metric-format.
    """
    found: defaultdict[str, dict[str, dict[str, float]]] = defaultdict(dict)
    for point in points(verdicts):
        found[point.name][point.metric.key] = {"value": point.value}
    return _json(found)


def _custom(verdicts: VerdictFile, better: Better) -> str:
    return _json(
        [
            {
                "name": f"{point.name} {point.metric.name}",
                "unit": point.metric.unit or "count",
                "value": point.value,
                "extra": printable(point.cell.sentence),
            }
            for point in points(verdicts)
            if point.metric.better is better
        ]
    )


def _of_test(test: TestVerdicts) -> Iterator[ExportedPoint]:
    present = [cell for cell in test.cells if not cell.against]
    several = len({cell.workload for cell in present}) > 1
    for cell in present:
        if isinstance(cell.value, int | float) and math.isfinite(cell.value):
            yield ExportedPoint(test.test, cell, cell.value, test.workloads.get(cell.workload), several)


def _json(found: object) -> str:
    return json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
