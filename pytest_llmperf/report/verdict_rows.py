"""Convert the cells of a verdict file to table rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pytest_llmperf.metrics import METRICS, Metric
from pytest_llmperf.report.charts import figure
from pytest_llmperf.report.results_table import change, shown_value, since
from pytest_llmperf.storage.schema import Workload
from pytest_llmperf.text import short_name
from pytest_llmperf.verdict.model import Outcome
from pytest_llmperf.verdict.sentence import format_value
from pytest_llmperf.verdict.verdict_file import CellVerdict, TestVerdicts

NOTHING = "-"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One cell as a row of the table."""

    test: str
    name: str
    workload: str
    metric: str
    baseline: str
    now: str
    change: str
    limit: str
    outcome: str
    gates: bool
    fails: bool
    order: Mapping[str, float]
    """Sort keys of columns that are not sorted by their text."""


def rows(test: TestVerdicts) -> Iterator[Row]:
    """Yield a row for each cell with a figure; one row for a test with an error."""
    if test.error and not test.cells:
        yield _error_row(test)
    for cell in filter(is_known, test.cells):
        metric = METRICS[cell.metric]
        workload = test.workloads.get(cell.workload)
        yield Row(
            test=test.test,
            name=short_name(test.test),
            workload=shape(workload) if workload else "",
            metric=metric.title + since(cell),
            baseline=NOTHING if cell.baseline is None else format_value(metric, cell.baseline),
            now=format_value(metric, shown_value(cell)),
            change=change(cell),
            limit=_limit(cell, metric),
            outcome=cell.outcome.words,
            gates=cell.gates,
            fails=cell.fails,
            order=_order(cell),
        )


def _limit(cell: CellVerdict, metric: Metric) -> str:
    level = figure(cell.baseline)
    return NOTHING if level is None or cell.limit_ratio is None else format_value(metric, level * cell.limit_ratio)


def _error_row(test: TestVerdicts) -> Row:
    return Row(
        test=test.test,
        name=short_name(test.test),
        workload="",
        metric="",
        baseline=NOTHING,
        now=NOTHING,
        change=NOTHING,
        limit=NOTHING,
        outcome=Outcome.ERROR.words,
        gates=True,
        fails=True,
        order={"verdict": -1.0},
    )


def _order(cell: CellVerdict) -> dict[str, float]:
    found = {"verdict": severity(cell), "baseline": cell.baseline, "now": shown_value(cell), "change": cell.ratio}
    return {column: value for column, part in found.items() if (value := figure(part)) is not None}


_CALM = [Outcome.NEW, Outcome.UNCHANGED]
SEVERITY = [*(outcome for outcome in Outcome if outcome not in _CALM), *_CALM]
"""Outcomes, worst first."""


def is_known(cell: CellVerdict) -> bool:
    """Return whether the cell has a present or a baseline figure; others are metrics this device cannot measure."""
    return not (cell.value is None and cell.outcome is Outcome.NEW)


def severity(cell: CellVerdict) -> int:
    """Return a sort key: failing cells first, then gating ones, each by outcome, worst first."""
    return SEVERITY.index(cell.outcome) + len(SEVERITY) * ((not cell.fails) + (not cell.gates))


def shape(workload: Workload) -> str:
    """Describe a workload in a few words."""
    lengths = f"{workload.input_tokens} in, {workload.output_tokens} out"
    parts = [
        workload.model,
        workload.quantization,
        f"batch {workload.batch_size}",
        lengths if workload.output_tokens else "",
        workload.execution,
    ]
    return " · ".join(part for part in parts if part not in ("", "none"))
