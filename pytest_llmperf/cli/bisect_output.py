"""Output of ``llmperf bisect``: the cell that is searched, a line for each step, and the commit at the end."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from pytest_llmperf.metrics import METRICS, Metric
from pytest_llmperf.report.baseline_table import table_width
from pytest_llmperf.report.results_table import change
from pytest_llmperf.report.terminal import LONGEST_LIST
from pytest_llmperf.report.text_table import narrowed, plain_table, render
from pytest_llmperf.report.why_text import why_text
from pytest_llmperf.stats.interval import Interval
from pytest_llmperf.stats.student_t import LEVEL
from pytest_llmperf.text import plural, printable, some
from pytest_llmperf.verdict.model import Outcome
from pytest_llmperf.verdict.sentence import format_value, short_sentence, told_apart

if TYPE_CHECKING:
    from pytest_llmperf.ab.analysis import Standing
    from pytest_llmperf.ab.bisection import Bisection
    from pytest_llmperf.ab.bisection_file import BisectionFile, CandidateResult
    from pytest_llmperf.ab.search import Search

_TITLES = {"commit": "author, day: subject"}

_LEAST_BELIEF = 0.005
"""Minimum belief in a candidate that the table of an undecided search shows."""


def search_lines(bisection: Bisection, search: Search) -> Iterator[str]:
    """Yield the cell that is searched, and the others that are worse on BAD."""
    verdict = search.verdict
    yield printable(f"searching for {short_sentence(verdict)} of {verdict.cell.test}")
    others = [f"{short_sentence(one)} of {one.cell.test}" for one in bisection.regressions[1:]]
    if others:
        why = f"another {bisection.candidates[0].kind} may have changed it (--metric chooses)"
        yield f"not searched, {why}: {some(others, LONGEST_LIST)}"


def probe_line(bisection: Bisection, search: Search, found: CandidateResult) -> str:
    """Format what one step of the search showed."""
    if found.skipped:
        return printable(f"{found.name}: skipped: {found.skipped}")
    names = [bisection.candidates[one].name for one in (search.culprits[0], search.culprits[-1])]
    several = plural(len(search.culprits), bisection.candidates[0].kind)
    where = names[0] if len(search.culprits) == 1 else f"{names[0]} to {names[1]}, {several}"
    return printable(f"{found.name}: {_measured(found, search.verdict.cell.metric)}; now {where}")


def nothing_line(ends: Standing, metric: Metric | None) -> str:
    """Explain why there is nothing to search."""
    what = metric.name if metric else "gating metric"
    counting = [verdict for verdict in ends.verdicts if (verdict.cell.metric == metric if metric else verdict.counts)]
    errors = [f"{test}: {error}" for test in ends.tests if (error := ends.error(test))]
    open_ = [verdict for verdict in counting if not verdict.outcome.decided]
    better = [verdict for verdict in counting if verdict.outcome is Outcome.IMPROVED]
    if errors:
        return printable(f"nothing to find: BAD cannot be measured: {some(errors, 1)}")
    if open_:
        why = f"{open_[0].cell.metric.name} of {open_[0].cell.test}: {open_[0].reason or open_[0].outcome.words}"
        return printable(f"undecided whether BAD is worse than GOOD, so nothing was searched: {why}")
    if better:
        return printable(f"nothing to find: BAD is not worse than GOOD but better: {short_sentence(better[0])}")
    return f"nothing to find: no {what} is worse on BAD than on GOOD, so GOOD is as bad, or BAD as good"


def found_lines(found: BisectionFile) -> Iterator[str]:
    """Yield the table of what was asked, the conclusion, and why."""
    yield from _table_lines(found)
    for one in found.asked:
        if one.skipped:
            yield printable(f"skipped: {one.name} ({one.title}): {one.skipped}")
    yield printable(_conclusion(found))
    yield from map(printable, _step_lines(found))
    if found.why:
        yield why_text(found.why, table_width(), color=sys.stdout.isatty())
    if found.not_explained:
        yield printable(f"not explained: {found.not_explained}")


def _table_lines(found: BisectionFile) -> Iterator[str]:
    rows = [one for one in found.asked if not one.skipped]
    rows += [one for one in found.culprits if one.belief >= _LEAST_BELIEF and one not in found.asked]
    if len(rows) > 1:
        table = narrowed(_table(found, rows), table_width(), spare=("blocks", found.kind_of_candidate))
        yield render(table, table_width(), color=sys.stdout.isatty())


def _table(found: BisectionFile, rows: Sequence[CandidateResult]) -> Table:
    metric, timed = METRICS[found.searched.metric], found.kind == "timed"
    table = plain_table()
    table.add_column(found.kind_of_candidate, no_wrap=True)
    for heading in (metric.name, *(("blocks", "belief") if timed else ())):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column(_TITLES.get(found.kind_of_candidate, ""), no_wrap=True, overflow="ellipsis")
    for one in rows:
        figures = [str(one.blocks), f"{one.belief:.0%}"] if timed else []
        cells = (printable(one.name), _figure(one, metric), *figures, printable(one.title))
        table.add_row(*map(Text, cells))
    return table


def _measured(one: CandidateResult, metric: Metric) -> str:
    after = f" after {plural(one.blocks, 'block')}" if one.blocks else ""
    return f"{metric.name} {_figure(one, metric)}{after}"


def _figure(one: CandidateResult, metric: Metric) -> str:
    if one.value is not None:
        return format_value(metric, one.value)
    return change(one.ratio, _interval(one.interval))


def _interval(bounds: tuple[float, float] | None) -> Interval | None:
    return Interval(low=bounds[0], high=bounds[1], level=LEVEL) if bounds else None


def _conclusion(found: BisectionFile) -> str:
    last, names, kind = found.culprits[-1], [one.name for one in found.culprits], found.kind_of_candidate
    if found.found:
        return f"first bad {kind}: {last.name} ({last.title})"
    if not found.ended:
        return (
            f"undecided: the first bad {kind} is between {found.last_good} and {last.name} "
            f"({plural(len(names), kind)}, belief {found.belief:.0%}); with more blocks or time, the same command "
            "continues"
        )
    if len(names) == found.candidates:
        return f"undecided: none of the {plural(len(names) - 1, kind)} between GOOD and BAD could be measured"
    return f"first bad {kind} is one of {some(names, LONGEST_LIST)}: all but the last were skipped"


def _step_lines(found: BisectionFile) -> Iterator[str]:
    metric, test = METRICS[found.searched.metric], found.searched.test
    if found.ratio is not None:
        step = f"{metric.title} {change(found.ratio, _interval(found.interval))} from there on, beside GOOD"
        yield f"{step}, of {test}: belief {found.belief:.1%} after {plural(found.blocks, 'block')}"
    if found.before is None or found.after is None:
        return
    before, after = told_apart(metric, found.before, found.after)
    yield f"{metric.title} {before} -> {after}, of {test}"
    if (found.before, found.after) != (found.good_value, found.bad_value):
        ends = told_apart(metric, found.good_value or 0.0, found.bad_value or 0.0)
        others = f"other {found.kind_of_candidate}s change it too"
        yield f"{others}, since it is {ends[0]} on GOOD and {ends[1]} on BAD: bisect the rest"
