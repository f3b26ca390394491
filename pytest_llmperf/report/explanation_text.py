"""Format the explanation of a regression: a headline and a table of operators and kernels on both sides."""

from __future__ import annotations

from collections.abc import Iterator

from rich.text import Text

from pytest_llmperf.metrics import METRICS
from pytest_llmperf.report.text_table import narrowed, plain_table, render
from pytest_llmperf.text import printable, some
from pytest_llmperf.verdict.explanation import Explanation, OperatorChange
from pytest_llmperf.verdict.sentence import format_value

STEPS = {"prefill": "request", "decode": "token"}
MENTIONED = 3
WORTH_MENTIONING = 0.01
"""Minimum slowdown of an operator in the headline, as a share of the base's step.

Operators with more calls are also named. If no operator qualifies, all that took longer are.
"""


def explanation_title(explanation: Explanation) -> str:
    """Return the title of the table."""
    return f"time per {STEPS[explanation.phase]} in {explanation.phase}"


def explanation_text(explanation: Explanation, width: int, *, color: bool = False) -> str:
    """Format the explanation in at most ``width`` columns, if its words fit."""
    return "\n".join(_lines(explanation, width, color=color))


def headline(explanation: Explanation) -> str:
    """Return the operators that take longer, in one line: ``aten::mm +1.90 ms, 24 more calls``."""
    if explanation.reason:
        return printable(f"not explained: {explanation.reason}")
    base_ms, now_ms = explanation.base_ms or 0.0, explanation.now_ms or 0.0
    if now_ms <= base_ms:
        more = [f"{one.name}{_more_calls(one)}" for one in explanation.operators if one.more_calls > 0]
        no_longer = f"under the profiler a {STEPS[explanation.phase]} takes no longer"
        return f"{no_longer}: {some(more, MENTIONED) or 'the machine, or noise'}"
    worth_ms = WORTH_MENTIONING * base_ms
    told = [one for one in explanation.operators if one.difference_ms > worth_ms or one.more_calls > 0] or [
        one for one in explanation.operators if one.difference_ms > 0
    ]
    named = [f"{one.name} {_change(one)}{_more_calls(one)}" for one in told]
    return some(named, MENTIONED) or "no operator takes longer"


def _lines(explanation: Explanation, width: int, *, color: bool) -> Iterator[str]:
    yield headline(explanation)
    if explanation.reason:
        return
    table = plain_table()
    table.add_column("operator", no_wrap=True)
    on_device = any(one.place == "device" for one in explanation.operators)
    for heading in (*(["where"] if on_device else []), "base", "now", "change", "calls"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in explanation.operators:
        place = [Text(one.place)] if on_device else []
        figures = (_time(one.base_ms), _time(one.now_ms), _change(one), _calls(one))
        table.add_row(Text(printable(one.name)), *place, *map(Text, figures))
    yield render(narrowed(table, width, spare=("where", "base", "calls")), width, color=color)
    base, now = _time(explanation.base_ms), _time(explanation.now_ms)
    step = STEPS[explanation.phase]
    yield printable(f"a profiled {step}: {base} with {explanation.base}, {now} now; profiling itself takes time")
    if explanation.traces:
        yield printable(f"traces: {explanation.traces}")


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
