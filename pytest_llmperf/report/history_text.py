"""Format the change points of a baseline as lines of text."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from itertools import groupby

from pytest_llmperf.report.baseline_table import table_width
from pytest_llmperf.report.text_table import wrapped
from pytest_llmperf.report.verdict_rows import shape
from pytest_llmperf.stats.change_points import FEWEST_POINTS
from pytest_llmperf.text import plural, printable, short_hash
from pytest_llmperf.verdict.level_history import Change, Series
from pytest_llmperf.verdict.sentence import format_value


def change_lines(series: Sequence[Series], *, name: str) -> Iterator[str]:
    """Yield a baseline's change points: one line each below their test, and one line for cells without any."""
    changes = sum(len(one.changes) for one in series)
    yield printable(f"{name}: {plural(len(series), 'cell')}, {plural(changes, 'change')}")
    yield from _lines(series)
    yield f"A point is a session's runs at one commit; a change needs {FEWEST_POINTS} of them."


def _lines(series: Sequence[Series]) -> Iterator[str]:
    for (test, workload), members in groupby(series, key=lambda one: (one.cell.test, one.workload)):
        cells = [*members]
        points = max((one.points for one in cells), key=len)
        length = f"{plural(sum(point.runs for point in points), 'run')}, {plural(len(points), 'point')}"
        yield _wrapped(f"{test}: {shape(workload)}: {length}")
        for one in cells:
            for change in one.changes:
                yield _wrapped(f"  {_told(one, change)}")
                yield from _bisecting(one, change)
        yield from map(_wrapped, _calm_lines(cells))


def _bisecting(series: Series, change: Change) -> Iterator[str]:
    """Yield the command that finds the commit of a change for the worse; it is not wrapped, so that it can be copied.

    An accepted change is known. A run of an unknown commit, or two sessions of one commit, leave nothing to search.
    """
    good, bad = change.last.commit, change.first.commit
    is_worse = (change.after - change.before) * series.cell.metric.better.sign > 0
    if is_worse and good and bad and good != bad and not change.accepted:
        commits = [short_hash(good), short_hash(bad)]
        words = ["llmperf", "bisect", *commits, f"--metric={series.cell.metric.name}", "--", series.cell.test]
        yield printable(f"    {shlex.join(words)}")


def _wrapped(line: str) -> str:
    return wrapped(printable(line), table_width())


def _calm_lines(cells: Sequence[Series]) -> Iterator[str]:
    """Yield the cells without a change, in one line."""
    calm = [one for one in cells if not one.changes]
    for words, long_enough in (("no change", True), ("too few points", False)):
        names = [one.cell.metric.name for one in calm if one.is_long_enough is long_enough]
        if names:
            yield f"  {words}: {', '.join(names)}"


def _told(series: Series, change: Change) -> str:
    metric, percent = series.cell.metric, 100 * (change.after / change.before - 1)
    levels = f"{format_value(metric, change.before)} -> {format_value(metric, change.after)}"
    since = change.first.time[:16].replace("T", " ")
    accepted = f", accepted: {change.accepted}" if change.accepted else ""
    return f"{metric.name} {percent:+.1f} %: {levels} since {since}, {_commits(change)}{accepted}"


def _commits(change: Change) -> str:
    """Return the range of commits, as ``git log`` takes it."""
    return "..".join(short_hash(point.commit) if point.commit else "?" for point in (change.last, change.first))
