"""Format the times of operators and kernels of two profiles: one line, and a section with a table."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import indent

from rich.table import Table
from rich.text import Text

from pytest_llmperf.metrics import METRICS
from pytest_llmperf.report.text_table import narrowed, plain_table, render, wrapped
from pytest_llmperf.text import cut, printable
from pytest_llmperf.verdict.model import percent
from pytest_llmperf.verdict.sentence import format_value
from pytest_llmperf.verdict.time_change import OperatorChange, Phase, TimeChange

STEPS = {"prefill": "request", "decode": "token"}
LONGEST_NAME = 48
NO_LONGER = "under the profiler it takes no longer"


def time_line(one: OperatorChange, phase: Phase, share: float) -> str:
    """Return an operator or kernel of a profile in one line.

    Args:
        one: the operator or kernel.
        phase: the phase that was profiled.
        share: of the time that the phase takes longer; 0 if it takes no longer.

    Example: ``decode: aten::mm +1.90 ms, 24 more calls; 95 % of the time that a token takes longer``.
    """
    taken = f"{percent(share)} of the time that a {STEPS[phase]} takes longer" if share else NO_LONGER
    return f"{phase}: {cut(printable(one.name), LONGEST_NAME)} {_change(one)}{_more_calls(one)}; {taken}"


def time_section(change: TimeChange, width: int, *, color: bool = False) -> Iterator[str]:
    """Yield a title and a table of operators and kernels, in at most ``width`` columns."""
    step = STEPS[change.phase]
    title = f"time per {step} in {change.phase}"
    if change.reason:
        yield wrapped(printable(f"{title}: not explained: {change.reason}"), width)
        return
    base, now = _time(change.base_ms), _time(change.now_ms)
    yield wrapped(printable(f"{title}: {base} with {change.base}, {now} now (profiling takes time):"), width)
    table = narrowed(_table(change), width - 2, spare=("where", "base", "calls"))
    yield indent(render(table, width - 2, color=color), "  ")
    if change.traces:
        yield printable(f"  traces: {change.traces}")


def _table(change: TimeChange) -> Table:
    table = plain_table()
    table.add_column("operator", no_wrap=True)
    on_device = any(one.place == "device" for one in change.operators)
    for heading in (*(["where"] if on_device else []), "base", "now", "change", "calls"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in change.operators:
        place = [Text(one.place)] if on_device else []
        figures = (_time(one.base_ms), _time(one.now_ms), _change(one), _calls(one))
        table.add_row(Text(printable(one.name)), *place, *map(Text, figures))
    return table


def _time(ms: float | None) -> str:
    return "-" if ms is None else format_value(METRICS["tpot_ms"], ms)


def _change(one: OperatorChange) -> str:
    return f"{'-' if one.difference_ms < 0 else '+'}{_time(abs(one.difference_ms))}"


def _calls(one: OperatorChange) -> str:
    """Format the number of calls; if it changed, both numbers: ``57 -> 81``."""
    before, after = ("-" if count is None else _count(count) for count in (one.base_calls, one.now_calls))
    return after if before == after else f"{before} -> {after}"


def _more_calls(one: OperatorChange) -> str:
    more = _count(abs(one.more_calls))
    if more == "0":
        return ""
    return f", {more} {'more' if one.more_calls > 0 else 'fewer'} call{'s' * (more != '1')}"


def _count(calls: float) -> str:
    """Format a mean over tokens to three digits; from 100 on as an integer."""
    return f"{calls:.3g}" if calls < 100 else f"{calls:,.0f}"  # noqa: PLR2004  # three digits
