"""Convert the cells of a verdict file to table rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pytest_llmperf.metrics import METRICS, Metric
from pytest_llmperf.report.charts import figure
from pytest_llmperf.report.results_table import change, figure_text, quantization_words
from pytest_llmperf.storage.schema import Workload
from pytest_llmperf.text import short_name
from pytest_llmperf.verdict.model import Outcome, since
from pytest_llmperf.verdict.sentence import format_value
from pytest_llmperf.verdict.verdict_file import CellVerdict, TestVerdicts

NOTHING = "-"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One cell as a row of the table."""

    test: str
    name: str
    outcome: str
    gates: bool
    fails: bool
    workload: str = ""
    metric: str = ""
    baseline: str = NOTHING
    now: str = NOTHING
    change: str = NOTHING
    limit: str = NOTHING
    order: Mapping[str, float]
    """Sort keys of columns that are not sorted by their text."""


def rows(test: TestVerdicts) -> Iterator[Row]:
    """Yield a row for each cell with a figure; one row for a test with an error."""
    if test.error and not test.cells:
        name, order = short_name(test.test), {"verdict": -1.0}
        yield Row(test=test.test, name=name, outcome=Outcome.ERROR.words, gates=True, fails=True, order=order)
    for cell in (one for one in test.cells if one.is_known):
        metric = METRICS[cell.metric]
        workload = test.workloads.get(cell.workload)
        baseline, now, changed = figure_texts(cell)
        yield Row(
            test=test.test,
            name=short_name(test.test),
            workload=shape(workload) if workload else "",
            metric=metric.title + since(cell.against),
            baseline=baseline,
            now=now,
            change=changed,
            limit=_limit(cell, metric),
            outcome=cell.outcome.words,
            gates=cell.gates,
            fails=cell.fails,
            order=_order(cell),
        )


def figure_texts(cell: CellVerdict) -> tuple[str, str, str]:
    """Format a cell's baseline, its figure and the change between them."""
    metric = METRICS[cell.metric]
    baseline = NOTHING if cell.baseline is None else figure_text(metric, cell.baseline)
    return baseline, figure_text(metric, cell.now), change(cell.ratio, cell.interval)


def _limit(cell: CellVerdict, metric: Metric) -> str:
    level = figure(cell.baseline)
    return NOTHING if level is None or cell.limit_ratio is None else format_value(metric, level * cell.limit_ratio)


def _order(cell: CellVerdict) -> dict[str, float]:
    found = {"verdict": severity(cell), "baseline": cell.baseline, "now": cell.now, "change": cell.ratio}
    return {column: value for column, part in found.items() if (value := figure(part)) is not None}


def severity(cell: CellVerdict) -> int:
    """Return a sort key: failing cells first, then those that can fail, each by outcome, worst first."""
    return cell.outcome.severity + len(Outcome) * ((not cell.fails) + (not cell.counts))


def shape(workload: Workload) -> str:
    """Describe a workload in a few words."""
    lengths = f"{workload.input_tokens} in, {workload.output_tokens} out"
    parts = [
        workload.model,
        quantization_words(workload),
        f"batch {workload.batch_size}",
        lengths if workload.output_tokens else "",
        workload.execution,
    ]
    return " · ".join(part for part in parts if part not in ("", "none"))
