"""Results table: one group per model, one row per test and workload, with the primary metric."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from rich.table import Table
from rich.text import Text

from pytest_llmperf.metrics import METRICS, Metric, primary_metric
from pytest_llmperf.report.text_table import LEAST_NAME, Outline, narrowed, plain_table, room_for_names
from pytest_llmperf.stats.interval import Interval
from pytest_llmperf.storage.schema import TestResult, Workload
from pytest_llmperf.text import printable, short_hash, short_name
from pytest_llmperf.verdict.model import Outcome, Verdict, since
from pytest_llmperf.verdict.outcome import Entry
from pytest_llmperf.verdict.sentence import format_value

EXPLAINING = ("ttft_ms", "decode_tokens_per_s", "decode_peak_allocated_bytes", "operators_per_token")

COLORS = {
    Outcome.REGRESSED: "red",
    Outcome.ERROR: "red",
    Outcome.IMPROVED: "green",
    Outcome.UNCHANGED: "green",
}
OTHER_COLOR = "yellow"

Row = tuple[Entry, TestResult]


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Content of each row."""

    verbosity: int
    explaining: Sequence[str] = ()
    """Keys of metrics with their own column."""
    named: bool = False
    """Whether a verdict names the metrics that fail the test."""
    intervals: bool = True
    """Whether changes have their confidence interval."""


def results_table(entries: Iterable[Entry], *, width: int, verbosity: int = 0) -> Outline:
    """Return the table of a run, with as many additional columns as fit.

    Args:
        entries: results of the run's tests.
        width: available columns.
        verbosity: 0 for the primary metric; 1 adds gating metrics and changes, 2 all judged metrics.
    """
    rows = _by_model((entry, result) for entry in entries for result in entry.results)
    for layout in _layouts(rows, verbosity):
        outline = _table(rows, layout)
        if outline.fits(width):
            return outline
    if room_for_names(outline.table, width) < LEAST_NAME:
        outline = _table(rows, replace(layout, intervals=False))
    outline.table = narrowed(outline.table, width, spare=("baseline", "change"))
    return outline


def _layouts(rows: Iterable[Row], verbosity: int) -> Iterator[_Layout]:
    """Yield layouts from the richest to the barest; lines below the table name what a verdict does not."""
    primaries = {_primary(result).key for _, result in rows}
    keys = [key for key in EXPLAINING if {key} != primaries]
    explaining = [key for key in keys if not verbosity and any(result.cell(key) for _, result in rows)]
    for named in (True, False):
        yield _Layout(verbosity=verbosity, explaining=explaining, named=named)
    yield _Layout(verbosity=verbosity)


def _table(rows: Sequence[Row], layout: _Layout) -> Outline:
    titles = {_primary(result).title for _, result in rows}
    figure = titles.pop() if len(titles) == 1 and not layout.verbosity else "figure"
    outline = Outline(_empty_table(figure, layout.explaining))
    for model, members in groupby(rows, key=_group):
        outline.add_line(Text(model, style="bold"))
        for entry, result in members:
            _add(outline, entry, result, layout)
    return outline


def _empty_table(figure: str, explaining: Iterable[str]) -> Table:
    table = plain_table()
    table.add_column("test", no_wrap=True)
    for heading in (figure, "baseline", "change"):
        table.add_column(heading, justify="right", no_wrap=True)
    for key in explaining:
        table.add_column(METRICS[key].title.removeprefix("decode "), justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    return table


def _by_model(rows: Iterable[Row]) -> list[Row]:
    """Group rows by model; models and rows keep their order."""
    found = list(rows)
    order = {name: place for place, name in reversed(list(enumerate(map(_group, found))))}
    return sorted(found, key=lambda row: order[_group(row)])


def _group(row: Row) -> str:
    """Return model, quantization and attention; for callables, the engine."""
    workload = row[1].workload
    return printable(_model(workload) if workload.input_tokens else workload.engine)


def _model(workload: Workload) -> str:
    words = (workload.model, quantization_words(workload), workload.attention)
    engine = "" if workload.engine == "transformers" else f" by {workload.engine}"
    return " ".join(dict.fromkeys(words)) + engine


def quantization_words(workload: Workload) -> str:
    """A workload's quantization, and the share of weights that has it unless all have."""
    share = workload.settings.get("quantized_share")
    return workload.quantization + (f" ({share:.0%} of linear weights)" if isinstance(share, float) else "")


def _add(outline: Outline, entry: Entry, result: TestResult, layout: _Layout) -> None:
    """Add one row for the primary metric; with more verbosity, a row per metric below the test's name."""
    primary, verdicts = _primary(result), _verdicts(entry, result)
    of_primary = next((one for one in verdicts if one.cell.metric.key == primary.key and not one.against), None)
    several = f" {result.workload.execution}" if len(entry.results) > 1 else ""
    name = Text(printable(short_name(entry.test) + several))
    others = [one for one in verdicts if one is not of_primary and _is_shown(one, layout.verbosity)]
    if not others:
        outcome = _worst_text(entry, result, of_primary, named=layout.named)
        outline.table.add_row(name, *_figures(primary, result, of_primary, layout), outcome)
        return
    outline.add_line(name)
    label = Text(f"  {primary.title}")
    outline.table.add_row(label, *_figures(primary, result, of_primary, layout), _own_text(entry, of_primary))
    for verdict in others:
        metric, label = verdict.cell.metric, Text(printable(f"  {verdict.cell.metric.title}{since(verdict.against)}"))
        outline.table.add_row(label, *_figures(metric, result, verdict, layout), outcome_text(verdict.outcome))


def _verdicts(entry: Entry, result: TestResult) -> list[Verdict]:
    return [
        verdict
        for verdict in entry.verdicts
        if verdict.cell.workload == result.workload.hash and verdict.cell.metric.key in METRICS
    ]


def _is_shown(verdict: Verdict, verbosity: int) -> bool:
    """Return whether to show a further metric: gating ones and changes; with -vv all this device can measure."""
    if verbosity > 1:
        return verdict.cell.value is not None or verdict.outcome is not Outcome.NEW
    return verbosity > 0 and (verdict.counts or verdict.outcome in (Outcome.REGRESSED, Outcome.IMPROVED))


def _figures(metric: Metric, result: TestResult, verdict: Verdict | None, layout: _Layout) -> Iterator[Text]:
    yield Text(figure_text(metric, verdict.now if verdict else result.value(metric.key)))
    yield Text(figure_text(metric, verdict.baseline) if verdict and verdict.baseline is not None else "-")
    yield Text(change(verdict.ratio, verdict.interval if layout.intervals else None) if verdict else "-")
    for key in layout.explaining:
        cell = result.cell(key)
        yield Text(format_value(METRICS[key], cell.value) if cell else "-")


def _primary(result: TestResult) -> Metric:
    return primary_metric(cell.metric for cell in result.cells)


def figure_text(metric: Metric, value: float | str | None) -> str:
    """Format a figure for a column; a digest is shortened."""
    return short_hash(value) if isinstance(value, str) else format_value(metric, value)


def change(ratio: float | None, interval: Interval | None) -> str:
    """Format a relative change with its confidence interval: ``+1.5% [-9.0, +13]``; ``-`` without a ratio."""
    if ratio is None:
        return "-"
    bounds = f" [{_percent(interval.low)}, {_percent(interval.high)}]" if interval else ""
    return f"{_percent(ratio)}%{bounds}"


def _percent(ratio: float) -> str:
    points = 100 * (ratio - 1)
    return f"{points:+.1f}" if abs(points) < 10 else f"{points:+.0f}"  # noqa: PLR2004  # two digits suffice


def _worst_text(entry: Entry, result: TestResult, primary: Verdict | None, *, named: bool) -> Text:
    """Return the worst failing outcome, with its metrics if ``named``; else the primary metric's outcome."""
    failing = [verdict for verdict in entry.failing if verdict.cell.workload == result.workload.hash]
    if entry.error or not failing:
        return _own_text(entry, primary)
    worst = min((verdict.outcome for verdict in failing), key=lambda outcome: outcome.severity)
    names = ", ".join(changed(verdict) for verdict in failing if verdict.outcome is worst)
    return Text(f"{worst.words}: {names}" if named else worst.words, style=COLORS[Outcome.REGRESSED])


def _own_text(entry: Entry, primary: Verdict | None) -> Text:
    if entry.error:
        return Text("error", style=COLORS[Outcome.ERROR])
    return Text("measured") if primary is None else outcome_text(primary.outcome)


def outcome_text(outcome: Outcome) -> Text:
    """Return an outcome in its colour."""
    return Text(outcome.words, style=COLORS.get(outcome, OTHER_COLOR))


def changed(verdict: Verdict) -> str:
    """Return the metric's name, with the anchor's revision if compared with an anchor."""
    return verdict.cell.metric.name + printable(since(verdict.against))
