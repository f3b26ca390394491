"""The table of results: a group a model, a row a test and workload, with the figure that it is measured for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from rich.table import Table
from rich.text import Text

from pytest_llmperf.outcome import Entry
from pytest_llmperf.records.schema import TestResult, Workload
from pytest_llmperf.report.tables import plain_table
from pytest_llmperf.text import printable, short_name
from pytest_llmperf.verdict.metrics import METRICS, Metric, primary_metric
from pytest_llmperf.verdict.model import Outcome, Verdict
from pytest_llmperf.verdict.sentence import format_value
from pytest_llmperf.verdict_file import CellVerdict

WIDE_COLUMNS = 110
"""Terminal width from which the explaining metrics have room."""

EXPLAINING = ("ttft_ms", "decode_tokens_per_s", "decode_peak_allocated_bytes", "operators_per_token")

COLORS = {
    Outcome.REGRESSED: "red",
    Outcome.ERROR: "red",
    Outcome.IMPROVED: "green",
    Outcome.UNCHANGED: "green",
}
OTHER_COLOR = "yellow"

Row = tuple[Entry, TestResult]


def results_table(entries: Iterable[Entry], *, wide: bool, every: bool = False) -> Table:
    """The table of a run.

    Args:
        entries: what became of its tests.
        wide: whether there is room for what explains the figure.
        every: whether each figure that is judged has a row, instead of the one that a workload is measured for.
    """
    rows = _by_model((entry, result) for entry in entries for result in entry.results)
    results = [result for _, result in rows]
    titles = {_primary(result).title for result in results}
    explaining = [key for key in EXPLAINING if wide and not every and any(one.cell(key) for one in results)]
    table = plain_table()
    table.add_column("test", overflow="fold")
    for heading in (titles.pop() if len(titles) == 1 and not every else "figure", "baseline", "change"):
        table.add_column(heading, justify="right", no_wrap=True)
    for key in explaining:
        table.add_column(METRICS[key].title.removeprefix("decode "), justify="right", no_wrap=True)
    table.add_column("verdict", overflow="fold")
    for model, members in groupby(rows, key=_group):
        table.add_row(Text(model, style="bold"))
        for entry, result in members:
            for cells in _rows(entry, result, explaining, every=every):
                table.add_row(*cells)
    return table


def _by_model(rows: Iterable[Row]) -> list[Row]:
    """Rows of one model together, models and rows in the order in which they came."""
    found = list(rows)
    order = {name: place for place, name in reversed(list(enumerate(map(_group, found))))}
    return sorted(found, key=lambda row: order[_group(row)])


def _group(row: Row) -> str:
    """Model, quantization and what it computes with; the callables of one run are a group as well."""
    workload = row[1].workload
    return printable(_model(workload) if workload.input_tokens else workload.engine)


def _model(workload: Workload) -> str:
    words = (workload.model, workload.quantization, workload.attention)
    engine = "" if workload.engine == "transformers" else f" by {workload.engine}"
    return " ".join(dict.fromkeys(words)) + engine


def _rows(entry: Entry, result: TestResult, explaining: Sequence[str], *, every: bool) -> Iterator[list[Text]]:
    verdicts = [
        verdict
        for verdict in entry.verdicts
        if verdict.cell.workload == result.workload.hash and verdict.cell.metric.key in METRICS and not verdict.against
    ]
    primary = _primary(result)
    of_primary = next((verdict for verdict in verdicts if verdict.cell.metric.key == primary.key), None)
    several = f" {result.workload.execution}" if len(entry.results) > 1 else ""
    name = Text(printable(short_name(entry.test) + several))
    yield [name, *_figures(primary, result, of_primary, explaining), _verdict_text(entry, result, of_primary)]
    for verdict in verdicts if every else ():
        if verdict is not of_primary:
            metric = verdict.cell.metric
            yield [Text(f"  {metric.title}"), *_figures(metric, result, verdict, ()), outcome_text(verdict.outcome)]


def _figures(metric: Metric, result: TestResult, verdict: Verdict | None, explaining: Sequence[str]) -> Iterator[Text]:
    yield Text(format_value(metric, result.value(metric.key)))
    yield Text(format_value(metric, verdict.baseline) if verdict and verdict.baseline is not None else "-")
    yield Text(change(verdict))
    for key in explaining:
        cell = result.cell(key)
        yield Text(format_value(METRICS[key], cell.value) if cell else "-")


def _primary(result: TestResult) -> Metric:
    return primary_metric(cell.metric for cell in result.cells)


def change(verdict: Verdict | CellVerdict | None) -> str:
    """The relative change with its interval: ``+1.5% [-9.0, +13]``."""
    if verdict is None or verdict.ratio is None:
        return "-"
    bounds = verdict.interval
    interval = f" [{_percent(bounds.low)}, {_percent(bounds.high)}]" if bounds else ""
    return f"{_percent(verdict.ratio)}%{interval}"


def _percent(ratio: float) -> str:
    points = 100 * (ratio - 1)
    return f"{points:+.1f}" if abs(points) < 10 else f"{points:+.0f}"  # noqa: PLR2004  # two digits are enough


def _verdict_text(entry: Entry, result: TestResult, primary: Verdict | None) -> Text:
    if entry.error:
        return Text("error", style=COLORS[Outcome.ERROR])
    failing = [verdict for verdict in entry.failing if verdict.cell.workload == result.workload.hash]
    if failing:
        worst = min((verdict.outcome for verdict in failing), key=[*Outcome].index)
        names = ", ".join(changed(verdict) for verdict in failing if verdict.outcome is worst)
        return Text(f"{worst.words}: {names}", style=COLORS[Outcome.REGRESSED])
    return Text("measured") if primary is None else outcome_text(primary.outcome)


def outcome_text(outcome: Outcome) -> Text:
    """An outcome in its colour."""
    return Text(outcome.words, style=COLORS.get(outcome, OTHER_COLOR))


def changed(verdict: Verdict) -> str:
    """The metric, and since when it changed where that is not the present baseline."""
    return verdict.cell.metric.name + (f" since {printable(verdict.against)}" if verdict.against else "")
