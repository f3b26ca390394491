"""Baseline table of the ``llmperf`` command: runs, median, spread and detectable change of each metric."""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from statistics import median, stdev

from rich.text import Text

from pytest_llmperf.metrics import COUNTED, Kind
from pytest_llmperf.report.results_table import figure_text
from pytest_llmperf.report.text_table import PIPE_COLUMNS, Outline, narrowed, plain_table, wrapped
from pytest_llmperf.report.verdict_rows import shape
from pytest_llmperf.storage.comparability import blocking, compare_environments, counted_key
from pytest_llmperf.storage.schema import Baseline, Run
from pytest_llmperf.text import plural, printable, some
from pytest_llmperf.verdict.comparison import Comparison
from pytest_llmperf.verdict.exact import limit_value, varies
from pytest_llmperf.verdict.model import Cell, evidence
from pytest_llmperf.verdict.screen import screen
from pytest_llmperf.verdict.sentence import format_value

LONGEST_LIST = 3


def baseline_lines(baseline: Baseline, *, name: str, every_metric: bool) -> Iterator[str]:
    """Yield a baseline as a table: one row per metric below each test, from runs comparable with the latest."""
    sessions = len({run.session_id for run in baseline.runs})
    yield printable(f"{name}: {baseline.device_key}, {evidence(len(baseline.runs), sessions)}")
    if not baseline.runs:
        return
    latest = max(baseline.runs, key=lambda run: run.time)
    comparison = Comparison(baseline, latest.environment)
    cells = [cell for cell in comparison.stored_cells.values() if cell.window and (every_metric or cell.limit.gates)]
    outline = Outline(plain_table())
    outline.table.add_column("metric", no_wrap=True)
    for heading in ("runs", "sessions", "median", "spread", "finds"):
        outline.table.add_column(heading, justify="right", no_wrap=True)
    for (test, workload), members in groupby(cells, key=lambda cell: (cell.test, cell.workload)):
        heading = printable(f"{test}: {shape(baseline.workloads[workload])}")
        outline.add_line(Text(wrapped(heading, table_width())))
        for cell in members:
            outline.table.add_row(*map(Text, map(printable, _row(cell, comparison))))
    outline.table = narrowed(outline.table, table_width(), spare=("sessions", "runs", "spread"))
    yield outline.render(table_width(), color=False)
    if others := [run for run in baseline.runs if counted_key(run.environment) != counted_key(latest.environment)]:
        yield wrapped(printable(_not_shown(others, latest)), table_width())
    yield "spread: standard deviation between runs"
    yield "finds: smallest change for the worse that is found 9 times in 10"


def _not_shown(others: Sequence[Run], latest: Run) -> str:
    """Return how many runs are of other versions, such as those of another torch, and which."""
    found = [blocking(compare_environments(run.environment, latest.environment), COUNTED) for run in others]
    names = dict.fromkeys(str(difference) for differences in found for difference in differences)
    return f"not shown: {plural(len(others), 'run')} of other environments: {some([*names], LONGEST_LIST)}"


def _row(cell: Cell, comparison: Comparison) -> tuple[str, ...]:
    counts = (f"  {cell.metric.name}", str(len(cell.window)), str(cell.sessions))
    if cell.metric.kind is Kind.IDENTITY:
        return (*counts, figure_text(cell.metric, cell.window[-1].value), "-", "-")
    middle = median(cell.figures)
    return (*counts, format_value(cell.metric, middle), _spread(cell), _finds(cell, comparison))


def _spread(cell: Cell) -> str:
    """Return the standard deviation of the logarithms of the runs' figures, as a percentage."""
    if len(cell.window) < 2 or min(cell.figures) <= 0:  # noqa: PLR2004  # a spread needs two
        return "-"
    return f"{100 * math.expm1(stdev(map(math.log, cell.figures))):.1f} %"


def _finds(cell: Cell, comparison: Comparison) -> str:
    """Return the change that this window detects: the limit of an exact metric, or the screen's MDE."""
    if cell.metric.kind is Kind.EXACT and not varies(cell):
        return f"> {format_value(cell.metric, limit_value(cell))}"
    if min(cell.figures) <= 0:
        return "-"
    found = screen(cell, prior=comparison.prior(cell.metric), candidates=[median(cell.figures)])
    return f"+{100 * found.mde:.0f} %"


def table_width() -> int:
    """Return the terminal's width or ``COLUMNS``; a large width if the output is not a terminal."""
    known = sys.stdout.isatty() or os.environ.get("COLUMNS")
    return shutil.get_terminal_size().columns if known else PIPE_COLUMNS
