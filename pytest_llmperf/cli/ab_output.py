"""Output of ``llmperf ab``: progress while it measures, and results at its end."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from pytest_llmperf.report.baseline_table import table_width
from pytest_llmperf.report.results_table import change, outcome_text
from pytest_llmperf.report.terminal import LONGEST_LIST, attention_lines, decided_line
from pytest_llmperf.report.text_table import narrowed, plain_table, render
from pytest_llmperf.report.why_text import why_text
from pytest_llmperf.text import plural, printable, short_name, some
from pytest_llmperf.verdict.model import Verdict
from pytest_llmperf.verdict.outcome import RunOutcome
from pytest_llmperf.verdict.paired import LOOKS, next_look
from pytest_llmperf.verdict.sentence import format_value

if TYPE_CHECKING:
    from pytest_llmperf.ab.analysis import Standing
    from pytest_llmperf.ab.blocks import MeasuredBlock


def progress_lines(
    standing: Standing, blocks: Sequence[MeasuredBlock], *, most: int, left_s: float | None
) -> Iterator[str]:
    """Yield the progress: one line for the block, and one for each undecided cell."""
    look = next_look(len(blocks))
    waiting = [verdict for verdict in standing.verdicts if verdict.blocks and verdict.counts]
    waiting = [verdict for verdict in waiting if not verdict.outcome.decided]
    state = f"{len(standing.undecided)} of {len(standing.tests)} tests undecided"
    ahead = f", next look after block {look}" if look and waiting else ""
    left = f", {_left(left_s)} of the budget left" if left_s is not None else ""
    yield f"block {len(blocks)} of at most {most} took {blocks[-1].seconds:.0f} s: {state}{ahead}{left}"
    for verdict in waiting:
        name = f"{short_name(verdict.cell.test)} {verdict.cell.metric.name}"
        interval = verdict.interval if verdict.blocks >= LOOKS[0] else None
        yield printable(f"  {name}: {change(verdict.ratio, interval)} after {plural(verdict.blocks, 'block')}")


def _left(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{max(0.0, seconds):.0f} s"  # noqa: PLR2004  # a minute


def result_lines(run: RunOutcome, blocks: Sequence[MeasuredBlock], *, null_trip: str) -> Iterator[str]:
    """Yield the table, the changes, why the rest is undecided, the cost, and last the conclusion."""
    table = narrowed(_table(run), table_width(), spare=("blocks", "base", "head"))
    yield render(table, table_width(), color=sys.stdout.isatty())
    for line in attention_lines(run.verdicts):
        yield printable(line)
    for entry in run.entries:
        if why := entry.why:
            yield printable(f"why: {entry.test}")
            yield why_text(why, table_width(), color=sys.stdout.isatty())
    for entry in run.entries:
        if entry.error:
            yield printable(f"error: {entry.test}: head: {entry.error}")
    if run.missing:
        missing = f"{plural(len(run.missing), 'test')} of base, not on head: {some(run.missing, LONGEST_LIST)}"
        yield printable(f"missing: {missing}")
    yield from map(printable, _disturbed_lines(blocks))
    if run.differences and not any(entry.why for entry in run.entries):
        yield printable(f"base and head differ in {', '.join(run.differences)}")
    yield printable(f"null control: {null_trip or 'neither side differs from itself'}")
    seconds = sum(block.seconds for block in blocks)
    yield from map(printable, _device_lines(blocks))
    yield f"measured {plural(len(blocks), 'block')} of two fresh processes in {seconds:.0f} s"
    yield decided_line(run)


def _device_lines(blocks: Sequence[MeasuredBlock]) -> Iterator[str]:
    counts = Counter(block.device for block in blocks)
    if len(counts) > 1:
        yield "blocks by device: " + ", ".join(f"{device} {count}" for device, count in counts.items())


def _disturbed_lines(blocks: Sequence[MeasuredBlock]) -> Iterator[str]:
    found: defaultdict[str, dict[int, str]] = defaultdict(dict)
    for block in blocks:
        for arm in block.arms.values():
            for (test, _, _), why in arm.invalid.items():
                found[test][block.number] = why
    for test, whys in found.items():
        why = next(iter(whys.values()))
        yield f"disturbed: timings of {test} are invalid in {len(whys)} of {len(blocks)} blocks: {why}"


def _table(run: RunOutcome) -> Table:
    table = plain_table()
    table.add_column("test", no_wrap=True)
    table.add_column("metric", no_wrap=True)
    for heading in ("base", "head", "change", "blocks"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for verdict in run.verdicts:
        if verdict.counts and verdict.blocks:
            table.add_row(*_row(verdict))
    return table


def _row(verdict: Verdict) -> Iterator[Text]:
    cell = verdict.cell
    yield Text(printable(short_name(cell.test)))
    yield Text(cell.metric.name)
    yield Text(format_value(cell.metric, verdict.baseline))
    yield Text(format_value(cell.metric, cell.value))
    yield Text(change(verdict.ratio, verdict.interval))
    yield Text(str(verdict.blocks))
    yield outcome_text(verdict.outcome)
