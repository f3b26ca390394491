"""Build the HTML report's content from a run's evidence: texts, tables and charts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pytest_llmperf.metrics import METRICS, PRIMARY, Kind, Metric, primary_metric
from pytest_llmperf.report import charts, workload_comparison
from pytest_llmperf.report.charts import Chart
from pytest_llmperf.report.inputs import Evidence
from pytest_llmperf.report.terminal import counted
from pytest_llmperf.report.verdict_rows import Row, rows, severity, shape
from pytest_llmperf.report.why_text import why_line, why_text
from pytest_llmperf.report.workload_family import MeasuredWorkload, families
from pytest_llmperf.storage.comparability import FIELDS, Weight
from pytest_llmperf.storage.schema import CellRun, Observation, TestResult
from pytest_llmperf.text import plural
from pytest_llmperf.verdict.judge import is_judged
from pytest_llmperf.verdict.level_history import Series
from pytest_llmperf.verdict.model import Outcome, percent
from pytest_llmperf.verdict.sentence import format_value
from pytest_llmperf.verdict.verdict_file import CellVerdict, TestVerdicts, VerdictFile

TABLE_COLUMNS = 100

Facts = Sequence[tuple[str, str]]
"""Pairs of name and value."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Charts of one kind, shown one at a time."""

    charts: Sequence[Chart]


@dataclass(frozen=True, kw_only=True)
class Part:
    """One workload of a test."""

    title: str
    facts: Facts
    conditions: Facts
    measured: Facts
    figures: Sequence[Figures]


@dataclass(frozen=True, kw_only=True)
class Test:
    """One test with its verdicts, why they changed, and its workloads."""

    __test__ = False  # pytest would collect a class of this name

    test: str
    outcome: str
    error: str
    sentences: Sequence[tuple[str, str]]
    """Outcome and sentence of each cell that gates or moved."""
    why: Sequence[str]
    """Lines that tell why figures changed; empty if none did."""
    parts: Sequence[Part]
    reproduce: str


@dataclass(frozen=True, kw_only=True)
class ShownDifference:
    """A fact about the environment that differs from the baseline's latest run, or between base and head."""

    name: str
    now: str
    then: str
    blocks: bool
    """Whether the difference prevents a comparison; a fact that only one side has does not."""


@dataclass(frozen=True, kw_only=True)
class Document:
    """Content of the page."""

    device: str
    conclusion: str
    failed: bool
    decided: str
    injected: str
    run_facts: Facts
    outcomes: Sequence[tuple[str, int]]
    """Number of cells that can fail, by outcome."""
    failures: Sequence[tuple[str, Sequence[str]]]
    """Each failed test with its sentences, and the most telling fact about it."""
    missing: Sequence[str]
    rows: Sequence[Row]
    tests: Sequence[Test]
    compared: Sequence[tuple[str, Figures]]
    differences: Sequence[ShownDifference]
    environment: Facts
    metrics: Facts
    tool: str


def document(evidence: Evidence) -> Document:
    """Build the page's content for a run.

    Raises:
        MissingDependency: ruptures is not installed.
    """
    verdicts = evidence.verdicts
    return Document(
        device=verdicts.device_key or "nothing measured",
        conclusion=_conclusion(verdicts),
        failed=verdicts.failed,
        decided=f"{verdicts.decided} of {verdicts.total} gating cells decided: {counted(verdicts.outcomes)}",
        injected=", ".join(verdicts.injected),
        run_facts=_run_facts(verdicts),
        outcomes=[(outcome.words, count) for outcome, count in verdicts.outcomes.items()],
        failures=[*_failures(verdicts)],
        missing=verdicts.missing,
        rows=sorted((row for test in verdicts.tests for row in rows(test)), key=lambda row: row.order["verdict"]),
        tests=[_test(test, evidence) for test in verdicts.tests],
        compared=[
            (family.name, Figures(charts=[chart]))
            for family in families(_measured(evidence))
            for chart in workload_comparison.charts(family)
        ],
        differences=[*_differences(verdicts)],
        environment=[*_flat(verdicts.run.environment)] if verdicts.run else [],
        metrics=[*_metrics(verdicts)],
        tool=verdicts.tool,
    )


def _conclusion(verdicts: VerdictFile) -> str:
    if verdicts.breach:
        return f"Failed: {verdicts.breach}"
    if verdicts.failed:
        return f"{sum(test.failed for test in verdicts.tests)} of {len(verdicts.tests)} tests failed"
    return f"{plural(len(verdicts.tests), 'test')} passed" if verdicts.decided else "Nothing was verified"


def _run_facts(verdicts: VerdictFile) -> Facts:
    run = verdicts.run
    if run is None:
        return []
    tree = " with changes that are not committed" if run.dirty else ""
    return [("started", run.time), ("commit", f"{run.commit or 'unknown'}{tree}"), ("run", run.run_id)]


def _failures(verdicts: VerdictFile) -> Iterator[tuple[str, Sequence[str]]]:
    for test in verdicts.tests:
        sentences = [*([test.error] if test.error else []), *(cell.sentence for cell in test.cells if cell.fails)]
        if sentences:
            yield test.test, [*sentences, *([why_line(test.why)] if test.why else [])]


def _test(test: TestVerdicts, evidence: Evidence) -> Test:
    hashes = dict.fromkeys([*test.workloads, *(workload for name, workload in evidence.result_of if name == test.test)])
    telling = [cell for cell in test.cells if cell.counts or cell.outcome in (Outcome.REGRESSED, Outcome.IMPROVED)]
    return Test(
        test=test.test,
        outcome=_outcome(test),
        error=test.error,
        sentences=[(cell.outcome.words, cell.sentence) for cell in sorted(telling, key=severity)],
        why=why_text(test.why, TABLE_COLUMNS).split("\n") if test.why else [],
        parts=[_part(test, name, evidence) for name in hashes],
        reproduce=test.reproduce,
    )


def _outcome(test: TestVerdicts) -> str:
    """Return the worst outcome of a test's cells that can fail it."""
    found = [cell.outcome for cell in test.cells if cell.counts]
    if test.error:
        return Outcome.ERROR.words
    return min(found, key=lambda outcome: outcome.severity).words if found else "measured"


def _part(test: TestVerdicts, name: str, evidence: Evidence) -> Part:
    result = evidence.result_of.get((test.test, name))
    workload = result.workload if result else test.workloads[name]
    cells = {cell.metric: cell for cell in test.cells if cell.workload == name and not cell.against and cell.is_known}
    return Part(
        title=shape(workload),
        facts=[*_flat(workload.model_dump())],
        conditions=[*_conditions(result.observation)] if result else [],
        measured=[_figure(cell) for cell in result.cells if cell.metric not in cells] if result else [],
        figures=[*_figures(test.test, name, cells, evidence)],
    )


def _figures(test: str, name: str, cells: Mapping[str, CellVerdict], evidence: Evidence) -> Iterator[Figures]:
    result = evidence.result_of.get((test, name))
    now = {key: cell.value for key, cell in cells.items()} | (_values(result) if result else {})
    baseline = charts.figures({key: cell.baseline for key, cell in cells.items()})
    samples = result.samples if result else {}
    judged = sorted(filter(is_judged, METRICS.values()), key=lambda metric: metric is not primary_metric(now))
    keys = [(metric, (test, name, metric.key)) for metric in judged]
    groups = (
        [charts.per_token(result, baseline.get(PRIMARY.key))] if result else [],
        [
            _distribution(metric, samples.get(metric.key, ()), evidence.window_of.get(key, ()), cells.get(metric.key))
            for metric, key in keys
            if metric is judged[0] or metric.key in samples
        ],
        [_history(evidence.series_of[key], now) for _, key in keys if key in evidence.series_of],
        [charts.memory(charts.figures(now), baseline)],
    )
    for group in groups:
        if found := [chart for chart in group if chart]:
            yield Figures(charts=found)


def _distribution(
    metric: Metric, samples: Sequence[float], window: Sequence[float], cell: CellVerdict | None
) -> Chart | None:
    return charts.distribution(metric, samples, window, cell.candidates if cell else ())


def _history(series: Series, now: Mapping[str, object]) -> Chart:
    return charts.history(series, charts.figure(now.get(series.cell.metric.key)))


def _measured(evidence: Evidence) -> Iterator[MeasuredWorkload]:
    for test in evidence.verdicts.tests:
        for name, workload in test.workloads.items():
            result = evidence.result_of.get((test.test, name))
            judged = {cell.metric: cell.now for cell in test.cells if cell.workload == name}
            figures = (_values(result) if result else {}) | judged
            yield MeasuredWorkload(test.test, workload, charts.figures(figures))


def _values(result: TestResult) -> dict[str, int | float | str | None]:
    return {cell.metric: cell.value for cell in result.cells}


def _conditions(seen: Observation) -> Iterator[tuple[str, str]]:
    yield "clock", seen.clock
    yield "requests", str(seen.requests) + (f", {seen.disturbed_requests} disturbed" if seen.disturbed_requests else "")
    steady = "steady" if seen.warmup.steady else "not steady when it ended"
    yield "warm-up", f"{plural(seen.warmup.requests, 'request')}, {steady}" if seen.warmup.requests else "none"
    if seen.invalid:
        yield "invalid", seen.invalid
    yield from _flat(seen.conditions)


def _figure(cell: CellRun) -> tuple[str, str]:
    metric = METRICS.get(cell.metric)
    shown = format_value(metric, cell.value) if metric else str(cell.value)
    return (metric.title if metric else cell.metric), f"{shown}{f': {cell.reason}' if cell.reason else ''}"


def _flat(facts: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flat(value)
        elif value is not None and value != "":
            yield name.replace("_", " "), str(value)


def _differences(verdicts: VerdictFile) -> Iterator[ShownDifference]:
    """Parse lines of the form ``field: then -> now``."""
    for line in verdicts.differences:
        name, _, values = line.partition(": ")
        then, _, now = values.rpartition(" -> ")
        blocks = FIELDS.get(name) is Weight.BLOCKS and "None" not in (then, now)
        then, now = ("unknown" if value == "None" else value for value in (then, now))
        yield ShownDifference(name=name.replace("_", " "), now=now, then=then, blocks=blocks)


def _metrics(verdicts: VerdictFile) -> Iterator[tuple[str, str]]:
    """Yield the definitions of the metrics in the table."""
    keys = {cell.metric for test in verdicts.tests for cell in test.cells}
    for metric in (metric for key, metric in METRICS.items() if key in keys):
        margin = f"; tolerated {percent(metric.tolerate)}" if metric.kind is Kind.TIMED else ""
        yield metric.title, f"{metric.definition}; {metric.better} is better, {metric.kind}{margin}"
