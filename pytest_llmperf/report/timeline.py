"""Changes of level as a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.text import Text

from pytest_llmperf.history import Change, Series
from pytest_llmperf.report.show import table_width
from pytest_llmperf.report.tables import plain_table, render
from pytest_llmperf.text import printable
from pytest_llmperf.verdict.change_points import FEWEST_POINTS
from pytest_llmperf.verdict.sentence import format_value

COMMIT_DIGITS = 8
HEADINGS = ("runs", "points", "since", "commits", "before", "after", "change")


def change_lines(series: Sequence[Series], *, name: str) -> Iterator[str]:
    """A baseline's change points: a row each, and a row for each cell that has none."""
    yield printable(f"{name}: {len(series)} cells, {sum(len(one.changes) for one in series)} changes")
    table = plain_table()
    table.add_column("test", overflow="fold")
    table.add_column("metric", overflow="fold")
    for heading in HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("accepted", overflow="fold")
    for one in series:
        for row in _rows(one):
            table.add_row(*map(Text, map(printable, row)))
    yield render(table, table_width(), color=False)
    yield f"A point is a session's runs at one commit; changes are looked for from {FEWEST_POINTS} points on."


def _rows(series: Series) -> Iterator[tuple[str, ...]]:
    runs = sum(point.runs for point in series.points)
    cell = (series.cell.test, series.cell.metric.name, str(runs), str(len(series.points)))
    if not series.changes:
        yield (*cell, "none found" if series.is_long_enough else "too few", "-", "-", "-", "-", "")
    for change in series.changes:
        yield (*cell, *_change(series, change))


def _change(series: Series, change: Change) -> tuple[str, ...]:
    return (
        change.first.time[:16].replace("T", " "),
        f"{_short(change.last.commit)}..{_short(change.first.commit)}",
        format_value(series.cell.metric, change.before),
        format_value(series.cell.metric, change.after),
        f"{100 * (change.after / change.before - 1):+.1f} %",
        change.accepted,
    )


def _short(commit: str | None) -> str:
    return commit[:COMMIT_DIGITS] if commit else "?"
