"""The terminal summary: a table of tests, a line for each verdict that wants attention, and what was decided."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from pytest_llmperf.outcome import Entry, RunOutcome
from pytest_llmperf.records.schema import CellRun, TestResult
from pytest_llmperf.report.tables import plain_table, render
from pytest_llmperf.text import printable, some
from pytest_llmperf.verdict.metrics import METRICS, Metric, primary_metric
from pytest_llmperf.verdict.model import Outcome, Verdict
from pytest_llmperf.verdict.sentence import format_value, sentence, short_sentence
from pytest_llmperf.verdict_file import decided

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

LONGEST_LIST = 3

RECORD = "llmperf record --runs 5"


def write_summary(reporter: Any, run: RunOutcome) -> None:
    """Write the summary of a run to pytest's terminal reporter."""
    width, color = reporter._tw.fullwidth, reporter._tw.hasmarkup  # noqa: SLF001  # pytest offers no other way
    reporter.section(title(run.entries), bold=True)
    if any(entry.results for entry in run.entries):
        reporter.write_line(render(results_table(run.entries, wide=width >= WIDE_COLUMNS), width, color=color))
    for line in summary_lines(run):
        reporter.write_line(printable(line))


def write_now(config: Any, line: str) -> None:
    """Tell at once, on the terminal if there is one, what a run is at between and after its tests."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter:
        reporter.ensure_newline()
        reporter.write_line(printable(line))


def title(entries: list[Entry]) -> str:
    """The device, and whether the numbers are real."""
    device = entries[0].device_key if entries else "nothing measured"
    injected = entries[0].injected if entries else []
    return f"llmperf: {device}" + (f" - INJECTED {', '.join(injected)}" if injected else "")


def results_table(entries: list[Entry], *, wide: bool) -> Table:
    """One row a test and workload: the primary metric beside its baseline, and the verdict."""
    table = plain_table()
    table.add_column("test", overflow="fold")
    results = [result for entry in entries for result in entry.results]
    primaries = {_primary(result).title for result in results}
    for heading in (primaries.pop() if len(primaries) == 1 else "figure", "baseline", "change"):
        table.add_column(heading, justify="right", no_wrap=True)
    explaining = [key for key in EXPLAINING if wide and any(_cell(result, key) for result in results)]
    for key in explaining:
        table.add_column(METRICS[key].title.removeprefix("decode "), justify="right", no_wrap=True)
    table.add_column("verdict", overflow="fold")
    for entry in entries:
        for result in entry.results:
            table.add_row(*_row(entry, result, explaining))
    return table


def summary_lines(run: RunOutcome) -> Iterator[str]:
    """What wants attention, what became of the baseline, and last what was decided."""
    yield from attention_lines(run.verdicts)
    for entry in run.entries:
        if entry.error:
            yield f"error: {entry.test}: {entry.error}"
        elif entry.empty:
            yield f"invalid: {entry.test}: it ran and measured nothing"
        yield from (f"timed: {entry.test}: {timing}" for timing in entry.timings)
    if run.missing:
        yield _missing_line(run)
    yield from _unsteady(run.entries)
    yield from _disturbed(run.entries)
    yield from _confirmation_cost(run.entries)
    if run.not_kept:
        yield f"what was measured could not be kept: {run.not_kept}"
    if run.edited:
        yield f"baseline: {run.edited}"
    yield from _baseline_lines(run)
    if run.breach:
        yield f"failed: {run.breach}"
    yield decided_line(run)


def decided_line(run: RunOutcome) -> str:
    """How many cells that can fail were decided, and how many were not. Never reads as a pass when none was."""
    if not run.compared:
        errors = sum(bool(entry.error) for entry in run.entries)
        return f"llmperf: {len(run.entries)} tests measured, {errors} errors, nothing compared"
    outcomes = run.outcomes
    total = sum(outcomes.values())
    answered = decided(outcomes)
    verdict = f"llmperf: {len(run.entries)} tests, {answered} of {total} gating cells decided"
    return f"{verdict}: {counted(outcomes)}" + ("" if answered else ". Nothing was verified.")


def counted(outcomes: Mapping[Outcome, int]) -> str:
    """How many cells came out how, in words."""
    found = [f"{outcomes[outcome]} {_words(outcome)}" for outcome in Outcome if outcomes.get(outcome)]
    return ", ".join(found) or "none"


def _row(entry: Entry, result: TestResult, explaining: Sequence[str]) -> Iterator[Text]:
    metric = _primary(result)
    verdict = _verdict_on(entry, result, metric)
    yield Text(printable(short_name(entry.test)))
    yield Text(format_value(metric, result.value(metric.key)))
    yield Text(format_value(metric, verdict.baseline) if verdict and verdict.baseline is not None else "-")
    yield Text(change(verdict))
    for key in explaining:
        cell = _cell(result, key)
        yield Text(format_value(METRICS[key], cell.value) if cell else "-")
    yield _verdict_text(entry, verdict)


def _primary(result: TestResult) -> Metric:
    return primary_metric(cell.metric for cell in result.cells)


def _cell(result: TestResult, key: str) -> CellRun | None:
    return next((cell for cell in result.cells if cell.metric == key), None)


def _verdict_on(entry: Entry, result: TestResult, metric: Metric) -> Verdict | None:
    """The verdict on one figure of a workload, against the present baseline."""
    return next(
        (
            verdict
            for verdict in entry.verdicts
            if verdict.cell.metric.key == metric.key
            and verdict.cell.workload == result.workload.hash
            and not verdict.against
        ),
        None,
    )


def short_name(test: str) -> str:
    """A test's name without its file."""
    return test.rpartition("::")[2]


def change(verdict: Verdict | None) -> str:
    """The relative change with its interval: ``+1.5% [-9.0, +13]``."""
    if verdict is None or verdict.ratio is None:
        return "-"
    bounds = verdict.interval
    interval = f" [{_percent(bounds.low)}, {_percent(bounds.high)}]" if bounds else ""
    return f"{_percent(verdict.ratio)}%{interval}"


def _percent(ratio: float) -> str:
    points = 100 * (ratio - 1)
    return f"{points:+.1f}" if abs(points) < 10 else f"{points:+.0f}"  # noqa: PLR2004  # two digits are enough


def _verdict_text(entry: Entry, primary: Verdict | None) -> Text:
    if entry.error:
        return Text("error", style=COLORS[Outcome.ERROR])
    if entry.failing:
        worst = min((verdict.outcome for verdict in entry.failing), key=[*Outcome].index)
        names = ", ".join(_changed(verdict) for verdict in entry.failing if verdict.outcome is worst)
        return Text(f"{_words(worst)}: {names}", style=COLORS[Outcome.REGRESSED])
    if primary is None:
        return Text("measured")
    return outcome_text(primary.outcome)


def outcome_text(outcome: Outcome) -> Text:
    """An outcome in its colour."""
    return Text(_words(outcome), style=COLORS.get(outcome, OTHER_COLOR))


def _changed(verdict: Verdict) -> str:
    return verdict.cell.metric.name + (f" since {printable(verdict.against)}" if verdict.against else "")


def attention_lines(verdicts: Iterable[Verdict]) -> Iterator[str]:
    """One line for each change that gates, each test's other changes, and each reason that left cells undecided."""
    groups: defaultdict[tuple[Outcome, str], list[Verdict]] = defaultdict(list)
    explaining: defaultdict[tuple[str, Outcome], list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        if verdict.against and verdict.outcome is Outcome.IMPROVED:
            continue  # the good news of long ago
        if verdict.outcome in (Outcome.REGRESSED, Outcome.IMPROVED):
            if verdict.cell.limit.gates:
                yield f"{_words(verdict.outcome)}: {verdict.cell.test}: {sentence(verdict)}"
            else:
                explaining[verdict.cell.test, verdict.outcome].append(verdict)
        elif verdict.counts and verdict.outcome is not Outcome.UNCHANGED:
            groups[verdict.outcome, _group(verdict)].append(verdict)
    for (test, outcome), members in explaining.items():
        yield f"{_words(outcome)}, does not gate: {test}: {', '.join(map(short_sentence, members))}"
    for (outcome, reason), members in sorted(groups.items()):
        metrics = ", ".join(sorted(set(map(_changed, members))))
        tests = len({member.cell.test for member in members})
        yield f"{_words(outcome)}: {len(members)} cells of {tests} tests ({metrics}): {reason}"


def _group(verdict: Verdict) -> str:
    """The reason that undecided cells share; what this baseline can find differs from cell to cell."""
    if verdict.outcome is Outcome.INCONCLUSIVE and not verdict.flagged and verdict.mde is not None:
        if verdict.against:
            return f"too few or too noisy runs at {verdict.against} to find what must be caught"
        return f"too few or too noisy runs to find what must be caught; add sessions with {RECORD}, see llmperf show"
    return verdict.reason


def _unsteady(entries: Iterable[Entry]) -> Iterator[str]:
    tests = [entry.test for entry in entries if any(map(_is_unsteady, entry.results))]
    if tests:
        yield f"never became steady while warming up: {some(tests, LONGEST_LIST)}"


def _disturbed(entries: Iterable[Entry]) -> Iterator[str]:
    tests = [entry.test for entry in entries if any(result.observation.disturbed_requests for result in entry.results)]
    if tests:
        yield f"disturbed: other processes held the processors again and again: {some(tests, LONGEST_LIST)}"


def _confirmation_cost(entries: Iterable[Entry]) -> Iterator[str]:
    costs = [entry.confirm_seconds for entry in entries if entry.confirm_seconds]
    if costs:
        yield f"confirmation: {len(costs)} tests measured again in fresh processes, {sum(costs):.0f} s"


def _is_unsteady(result: TestResult) -> bool:
    """Whether warming up ran into its cap; where the cap is 0, the user does without."""
    return result.observation.warmup.requests > 0 and not result.observation.warmup.steady


def _missing_line(run: RunOutcome) -> str:
    count, few = len(run.missing), len(run.missing) <= LONGEST_LIST
    command = _command(run, "prune", *(run.missing if few else ["TEST"]))
    names = some(run.missing, LONGEST_LIST)
    return f"missing: {count} tests of the baseline are not among those collected: {names}. Gone for good? {command}"


def _bank_lines(run: RunOutcome, improved: list[Verdict]) -> Iterator[str]:
    """One command for each cell: the old level must leave the comparison, or it would blur the new one."""
    for verdict in improved[:LONGEST_LIST]:
        cell, ratio = verdict.cell, f" ×{verdict.ratio:.3f}" if verdict.ratio else ""
        reason = ("--reason", f"improved{ratio}", "--record", "5", *run.settings)
        yield f"improved: bank it with: {_command(run, 'accept', cell.test, cell.metric.name, *reason)}"
    if len(improved) > LONGEST_LIST:
        yield f"improved: {len(improved) - LONGEST_LIST} more cells; llmperf accept takes patterns such as '*'"


def _command(run: RunOutcome, *words: str) -> str:
    key = run.entries[0].device_key if run.entries else "KEY"
    return shlex.join(["llmperf", *words, "--device-key", key, *run.place])


def _baseline_lines(run: RunOutcome) -> Iterator[str]:
    counted = [verdict for verdict in run.verdicts if verdict.counts and not verdict.against]
    improved = [verdict for verdict in counted if verdict.outcome is Outcome.IMPROVED]
    yield from _bank_lines(run, improved)
    if run.update is None:
        if any(verdict.outcome is Outcome.NEW for verdict in counted) and not improved:
            yield f"no baseline yet for some of this: record one with '{RECORD}' and the same options"
    elif run.update.refusal:
        yield f"baseline NOT updated: {run.update.refusal}"
    elif run.update.baseline is not None:
        runs = run.update.baseline.runs
        sessions = len({run.session_id for run in runs})
        yield f"baseline updated: {run.update.path} holds {len(runs)} runs of {sessions} sessions"
        if run.profiles:
            yield run.profiles


def _words(outcome: Outcome) -> str:
    return outcome.value.replace("_", " ")
