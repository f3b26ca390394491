"""Output of ``llmperf selftest``: a line after each trial, and a summary at its end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pytest_llmperf.report.text_table import PIPE_COLUMNS, plain_table, render
from pytest_llmperf.text import plural, printable, short_name
from pytest_llmperf.verdict.paired import LOOKS

if TYPE_CHECKING:
    from rich.table import Table

    from pytest_llmperf.ab.selftest_stats import CellSpread, SelftestFile, Tally, Trial


def trial_line(trial: Trial, *, number: int, of: int) -> str:
    """Format one comparison as a line."""
    found = f"{trial.found} of {len(trial.cells)} cells regressed"
    exact = f" and {len(trial.exact_alarms)} exact ones" if trial.exact_alarms else ""
    cost = f"{plural(trial.blocks, 'block')}, {trial.seconds / 60:.1f} min"
    cut = "; ended by the budget, not counted" if trial.cut else ""
    null = f"; null control: {trial.null_trip}" if trial.null_trip else ""
    return printable(f"{_size(trial.size)}, {number} of {of}: {found}{exact} ({cost}{cut}{null})")


def summary_lines(found: SelftestFile) -> Iterator[str]:
    """Yield the rates by size, the spread of each cell, false alarms, the smallest slowdown seen, and the cost."""
    yield render(_rates([found.null, *found.sizes]), PIPE_COLUMNS, color=False)
    if found.spreads:
        yield render(_spreads(found.spreads), PIPE_COLUMNS, color=False)
    yield _false_alarms(found)
    yield _smallest(found)
    minutes = sum(tally.minutes for tally in (found.null, *found.sizes))
    cut = f"; {found.cut} ended by the budget and not counted" if found.cut else ""
    yield f"cost: {minutes:.1f} min of measuring{cut}"
    yield f"llmperf selftest: {'failed: ' + ', '.join(found.shortcomings) if found.shortcomings else 'passed'}"


def _rates(tallies: Sequence[Tally]) -> Table:
    table = plain_table()
    table.add_column("slowdown")
    for heading in ("comparisons", "decisions", "decided", "regressed", "rate (95 %)", "measured", "blocks", "minutes"):
        table.add_column(heading, justify="right", no_wrap=True)
    for tally in tallies:
        table.add_row(_size(tally.size), *_row(tally))
    return table


def _row(tally: Tally) -> Iterator[str]:
    yield from map(str, (tally.comparisons, tally.decisions, tally.decided, tally.found))
    yield f"{tally.found / tally.decisions:.0%} ({_interval(tally)})" if tally.decisions else "-"
    yield f"{100 * tally.measured:+.1f} %" if tally.measured is not None else "-"
    yield f"{tally.blocks:.1f}" if tally.blocks is not None else "-"
    yield f"{tally.minutes:.1f}"


def _spreads(spreads: Sequence[CellSpread]) -> Table:
    table = plain_table()
    table.add_column("cell", overflow="fold")
    for heading in ("A/A blocks", "sd of a block", f"{LOOKS[-1]} blocks find"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in spreads:
        name = printable(f"{short_name(one.test)} {one.metric}")
        table.add_row(name, str(one.blocks), f"{100 * one.sd:.2f} %", f"{100 * one.detectable:+.1f} %")
    return table


def _false_alarms(found: SelftestFile) -> str:
    null = found.null
    exact = f"; {found.exact_alarms} exact cells regressed as well" if found.exact_alarms else ""
    if not null.decisions:
        return f"false alarms: no A/A decision{exact}"
    bound = f"95 % upper bound of the rate {100 * null.upper_bound:.1f} %"
    return f"false alarms: {null.found} of {null.decisions} A/A decisions, {bound}{exact}"


def _smallest(found: SelftestFile) -> str:
    seen = next((tally for tally in found.sizes if tally.size == found.smallest_seen), None)
    if seen is None:
        return "smallest slowdown seen: none of those injected"
    count = f"regressed in {seen.found} of {seen.decisions} decisions"
    return f"smallest slowdown seen: {_size(seen.size)} ({count}; the rate may be as low as {seen.rate_low:.0%})"


def _interval(tally: Tally) -> str:
    return f"{100 * tally.rate_low:.0f} to {100 * tally.rate_high:.0f} %"


def _size(size: float) -> str:
    return f"+{100 * size:g} %" if size else "A/A"
