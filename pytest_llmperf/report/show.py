"""Baselines and findings as tables for the ``llmperf`` command."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Iterable, Iterator
from statistics import median, stdev
from typing import TYPE_CHECKING

from rich.text import Text

from pytest_llmperf.compare import Comparison
from pytest_llmperf.records.schema import Baseline, Workload
from pytest_llmperf.report.tables import PIPE_COLUMNS, plain_table, render
from pytest_llmperf.text import printable
from pytest_llmperf.verdict.exact import limit_value, varies
from pytest_llmperf.verdict.metrics import Kind
from pytest_llmperf.verdict.model import Cell
from pytest_llmperf.verdict.screen import screen
from pytest_llmperf.verdict.sentence import format_value

if TYPE_CHECKING:
    from pytest_llmperf.measure.doctor import Finding


def baseline_lines(baseline: Baseline, *, name: str, every_metric: bool) -> Iterator[str]:
    """A baseline as a table: one row a cell, over the runs that may be compared with the latest one."""
    sessions = len({run.session_id for run in baseline.runs})
    yield printable(f"{name}: {baseline.device_key}, {len(baseline.runs)} runs in {sessions} sessions")
    if not baseline.runs:
        return
    latest = max(baseline.runs, key=lambda run: run.time)
    comparison = Comparison(baseline, latest.environment)
    table = plain_table()
    table.add_column("test", overflow="fold")
    table.add_column("metric", overflow="fold")
    for heading in ("runs", "sessions", "median", "spread", "finds"):
        table.add_column(heading, justify="right", no_wrap=True)
    for (_, workload, _), cell in comparison.stored_cells.items():
        if cell.window and (every_metric or cell.limit.gates):
            label = f"{cell.test} {_shape(baseline.workloads[workload])}"
            table.add_row(*map(Text, map(printable, (label, *_row(cell, comparison)))))
    yield render(table, table_width(), color=False)
    yield "spread: standard deviation between runs. finds: smallest change for the worse found 9 times in 10."


def finding_lines(findings: Iterable[Finding]) -> Iterator[str]:
    """What a machine can measure, one line each, and why not the rest."""
    table = plain_table()
    for heading in ("", "", ""):
        table.add_column(heading, overflow="fold")
    table.show_header = False
    for finding in findings:
        table.add_row(*map(Text, (finding.subject, "yes" if finding.works else "no", printable(finding.detail))))
    yield render(table, table_width(), color=False)


def _row(cell: Cell, comparison: Comparison) -> tuple[str, ...]:
    counts = (cell.metric.name, str(len(cell.window)), str(cell.sessions))
    if cell.metric.kind is Kind.IDENTITY:
        return (*counts, str(cell.window[-1].value), "-", "-")
    middle = median(cell.figures)
    return (*counts, format_value(cell.metric, middle), _spread(cell), _finds(cell, comparison))


def _spread(cell: Cell) -> str:
    """Standard deviation of the logarithms of the runs' figures, as a percentage."""
    if len(cell.window) < 2 or min(cell.figures) <= 0:  # noqa: PLR2004  # a spread takes two
        return "-"
    return f"{100 * math.expm1(stdev(map(math.log, cell.figures))):.1f} %"


def _finds(cell: Cell, comparison: Comparison) -> str:
    """What this window can find: a limit for what is exact, the screen's minimum detectable effect for the rest."""
    if cell.metric.kind is Kind.EXACT and not varies(cell):
        return f"> {format_value(cell.metric, limit_value(cell))}"
    if min(cell.figures) <= 0:
        return "-"
    found = screen(cell, prior=comparison.prior(cell.metric), candidates=[median(cell.figures)])
    return f"+{100 * found.mde:.0f} %"


def _shape(workload: Workload) -> str:
    return f"({workload.model}, {workload.input_tokens} in, {workload.output_tokens} out)"


def table_width() -> int:
    """The terminal's width; wide where output goes elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else PIPE_COLUMNS
