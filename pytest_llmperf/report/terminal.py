"""Terminal summary: a results table, a line for each verdict that needs attention, and the decided cells."""

from __future__ import annotations

import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

from pytest_llmperf.hardware.device import is_fake
from pytest_llmperf.report.charts import figures
from pytest_llmperf.report.results_table import changed, results_table
from pytest_llmperf.report.why_text import why_line
from pytest_llmperf.report.workload_family import OVER_CONTEXT, ContextCost, MeasuredWorkload, families
from pytest_llmperf.storage.schema import TestResult
from pytest_llmperf.text import plural, printable, some
from pytest_llmperf.verdict.model import Outcome, Verdict
from pytest_llmperf.verdict.outcome import Entry, RunOutcome
from pytest_llmperf.verdict.sentence import sentence, short_sentence
from pytest_llmperf.verdict.verdict_file import VerdictFile, decided
from pytest_llmperf.verdict.why import Why

LONGEST_LIST = 3
GIB = 1024**3

RECORD = "llmperf record --runs 5"
COUNT = "llmperf record --counted"
COUNTED_FLAG = "--llmperf-counted"


_LACKING = (Outcome.NEW, Outcome.NOT_COMPARABLE)


def write_summary(reporter: Any, run: RunOutcome) -> None:
    """Write the summary of a run to pytest's terminal reporter.

    ``-v`` adds a row for each gating or changed figure, ``-vv`` for each judged one. ``-q`` omits the table, ``-qq``
    everything except the last line.
    """
    width, color = reporter._tw.fullwidth, reporter._tw.hasmarkup  # noqa: SLF001  # pytest has no public way
    if reporter.verbosity < -1:
        reporter.write_line(printable(decided_line(run)))
        return
    reporter.section(title(run.entries), bold=True)
    if reporter.verbosity >= 0 and any(entry.results for entry in run.entries):
        table = results_table(run.entries, width=width, verbosity=reporter.verbosity)
        reporter.write_line(table.render(width, color=color))
    for line in summary_lines(run):
        reporter.write_line(printable(line))


def write_now(config: Any, line: str) -> None:
    """Print a progress line between or after tests, if there is a terminal reporter; not at ``-qq``."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or reporter.verbosity < -1:
        return
    reporter.ensure_newline()
    if reporter._tw.width_of_current_line:  # noqa: SLF001  # dots at -q are no line to pytest's own method
        reporter.write_line("")
    reporter.write_line(printable(line))


def title(entries: list[Entry]) -> str:
    """Return the device, and which slowdowns were injected."""
    device = entries[0].device_key if entries else "nothing measured"
    injected = entries[0].injected if entries else []
    return f"llmperf: {device}" + (f" - INJECTED {', '.join(injected)}" if injected else "")


def summary_lines(run: RunOutcome) -> Iterator[str]:
    """Yield the lines of the summary: attention, baseline, and last the number of decided cells."""
    yield from attention_lines(_told_here(run.entries))
    yield from _why_lines(run.entries)
    for entry in run.entries:
        if entry.error:
            yield f"error: {entry.test}: {entry.error}"
        elif entry.empty:
            yield f"invalid: {entry.test}: the test measured nothing"
        yield from (f"timed: {entry.test}: {timing}" for timing in entry.timings)
    if run.missing:
        yield _missing_line(run)
    yield from _not_counted(run.entries)
    yield from _memory_fit(run.entries)
    yield from _unsteady(run.entries)
    yield from _disturbed(run.entries)
    if run.disturbed and not run.compared:
        yield f"invalid: {some([*run.disturbed], LONGEST_LIST)}: {next(iter(run.disturbed.values()))}"
    yield from _unlike_loop(run.entries)
    yield from _context_costs(run.entries)
    yield from _confirmation_cost(run.entries)
    yield from (*run.notes, *run.troubles)
    if run.edited:
        yield f"baseline: {run.edited}"
    yield from _baseline_lines(run)
    if run.counted:
        counting = "a fake device" if is_fake(run.device_key) else COUNTED_FLAG
        yield f"times were not measured: {counting} only counts"
    yield from _kind_lines(run)
    if run.breach:
        yield f"failed: {run.breach}"
    yield decided_line(run)
    yield from _next_step(run)


def _told_here(entries: Iterable[Entry]) -> Iterator[Verdict]:
    """Yield the verdicts that pytest does not show: FAILURES and its short summary have those that fail a test."""
    for entry in entries:
        shown = entry.failing if entry.failed else []
        yield from (verdict for verdict in entry.verdicts if verdict not in shown)


def _why_lines(entries: Iterable[Entry]) -> Iterator[str]:
    """Yield the most telling fact about each test that changed, once for all tests with the same cause."""
    groups: defaultdict[tuple[object, ...], list[tuple[str, Why]]] = defaultdict(list)
    for entry in entries:
        if why := entry.why:
            groups[_alike(why)].append((entry.test, why))
    for (test, why), *others in [*groups.values()][:LONGEST_LIST]:
        more = f" and {plural(len(others), 'test')} alike" if others else ""
        yield f"why: {test}{more}: {why_line(why)}"
    if rest := [*groups][LONGEST_LIST:]:
        yield f"why: {plural(len(rest), 'more cause')}: --llmperf-verdicts=FILE writes all of them"


def _alike(why: Why) -> tuple[object, ...]:
    """Return what tests have in common that changed for the same cause: operators do not depend on sizes."""
    work, cause, code = why.caused_by_work, why.cause, why.code
    if work and work.operators:
        return (cause.kind, cause.phase, work.operators)
    if cause.kind in ("device", "host"):
        return (cause.kind, cause.phase, cause.name)
    return (why_line(why.model_copy(update={"code": code and code.model_copy(update={"repeat": ()})})),)


def decided_line(run: RunOutcome) -> str:
    """Return how many cells that can fail were decided; never reads as a pass if none was."""
    if not run.compared:
        errors = sum(bool(entry.error) for entry in run.entries)
        return f"llmperf: {plural(len(run.entries), 'test')} measured, {plural(errors, 'error')}, nothing compared"
    outcomes = run.outcomes
    total = sum(outcomes.values())
    answered = decided(outcomes)
    verdict = f"llmperf: {plural(len(run.entries), 'test')}, {answered} of {total} gating cells decided"
    return f"{verdict}: {counted(outcomes)}" + ("" if answered else ". Nothing was verified.")


def _kind_lines(run: RunOutcome) -> Iterator[str]:
    """Where cells of one kind are decided and cells of the other are not, yield a line for each kind."""
    kinds: dict[str, Counter[Outcome]] = {"counted work": Counter(), "times and peaks": Counter()}
    for verdict in (one for one in run.verdicts if one.counts):
        kinds["times and peaks" if verdict.cell.metric.depends_on is None else "counted work"][verdict.outcome] += 1
    shares = [(decided(found), found.total()) for found in kinds.values()]
    if any(answered for answered, _ in shares) and any(total and not answered for answered, total in shares):
        for (name, outcomes), (answered, total) in zip(kinds.items(), shares, strict=True):
            yield f"{name}: {answered} of {total} cells decided: {counted(outcomes)}"


def _next_step(run: RunOutcome) -> Iterator[str]:
    """Where nothing was verified, yield the command that changes that."""
    outcomes = run.outcomes
    if decided(outcomes) or run.update or not run.compared:
        return
    if any(outcomes[outcome] for outcome in (Outcome.NEW, Outcome.NOT_COMPARABLE, Outcome.INCONCLUSIVE)):
        place = [f"--llmperf-baselines={folder}" for folder in run.place[1:]]
        yield f"to verify: {shlex.join([*shlex.split(_record(run)), *_settings(run), *place])}"
    elif outcomes[Outcome.INVALID]:
        yield "to verify: repeat on a quiet machine"


def _record(run: RunOutcome) -> str:
    """Return the command that records what this run measures."""
    return COUNT if run.counted else RECORD


def _settings(run: RunOutcome) -> list[str]:
    """Return the options that repeat this run's measurement with `_record`."""
    return [word for word in run.settings if word != COUNTED_FLAG]


def conclusion(found: VerdictFile) -> str:
    """Return how a run ended and how many cells were decided; never a pass if none was."""
    word = "FAILED" if found.failed else "passed" if found.decided else "nothing was verified"
    return f"{word}: {found.decided} of {found.total} gating cells decided: {counted(found.outcomes)}"


def counted(outcomes: Mapping[Outcome, int]) -> str:
    """Format the number of cells by outcome."""
    found = [f"{outcomes[outcome]} {outcome.words}" for outcome in Outcome if outcomes.get(outcome)]
    return ", ".join(found) or "none"


def attention_lines(verdicts: Iterable[Verdict]) -> Iterator[str]:
    """Yield a line for each gating change, each test's other changes, and each reason of undecided cells."""
    groups: defaultdict[tuple[Outcome, str], list[Verdict]] = defaultdict(list)
    explaining: defaultdict[tuple[str, Outcome], list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        if verdict.against and verdict.outcome is Outcome.IMPROVED:
            continue  # an improvement against an anchor is old news
        if verdict.outcome in (Outcome.REGRESSED, Outcome.IMPROVED):
            if verdict.cell.limit.gates:
                yield f"{verdict.outcome.words}: {verdict.cell.test}: {sentence(verdict)}"
            else:
                explaining[verdict.cell.test, verdict.outcome].append(verdict)
        elif verdict.counts and verdict.outcome is not Outcome.UNCHANGED:
            groups[verdict.outcome, _group(verdict)].append(verdict)
    for (test, outcome), members in explaining.items():
        yield f"{outcome.words}, does not gate: {test}: {', '.join(map(short_sentence, members))}"
    for (outcome, reason), members in sorted(groups.items()):
        metrics = ", ".join(sorted(set(map(changed, members))))
        tests = sorted({member.cell.test for member in members})
        names = f"{some(tests, LONGEST_LIST)}: " if outcome is Outcome.INVALID else ""
        cells = f"{plural(len(members), 'cell')} of {plural(len(tests), 'test')}"
        yield f"{outcome.words}: {cells} ({metrics}): {names}{reason}"


def _group(verdict: Verdict) -> str:
    """Return the reason that undecided cells share; their detectable change differs."""
    if verdict.outcome is Outcome.INCONCLUSIVE and not verdict.flagged and verdict.mde is not None:
        if verdict.against:
            return f"too few or too noisy runs at {verdict.against} to detect the required change"
        return f"too few or too noisy runs to detect the required change; add sessions with {RECORD}, see llmperf show"
    return verdict.reason


def _not_counted(entries: Iterable[Entry]) -> Iterator[str]:
    """Yield why requests could not be made on a fake device."""
    tests: defaultdict[str, list[str]] = defaultdict(list)
    for entry in entries:
        for result in entry.results:
            cell = result.cell("operators_per_token")
            if cell and cell.value is None and not result.observation.tokens_produced:
                tests[cell.reason].append(entry.test)
    yield from (f"not counted: {some(names, LONGEST_LIST)}: {reason}" for reason, names in tests.items())


def _memory_fit(entries: Iterable[Entry]) -> Iterator[str]:
    """Yield whether each workload fits the memory of the GPU that a fake device stands for."""
    shares = [
        (float(cell.value), entry, result)
        for entry in entries
        for result in entry.results
        if (cell := result.cell("memory_share")) and isinstance(cell.value, int | float)
    ]
    if not shares:
        return
    largest, entry, result = max(shares, key=lambda one: one[0])
    environment = entry.run.environment
    memory = float(environment["device_memory_bytes"] or 0)
    device = str(environment["device_name"]).removeprefix("fake ")
    taken = f"{largest * memory / GIB:.1f} of {memory / GIB:.1f} GiB ({largest:.0%})"
    over = sum(share > 1 for share, _, _ in shares)
    fits = f"{over} of {plural(len(shares), 'workload')} do NOT fit" if over else "every workload fits"
    yield f"memory: {fits} {device}; the largest takes {taken}, in {_largest_phase(result)}: {entry.test}"


def _largest_phase(result: TestResult) -> str:
    """Return the phase with the largest peak of live tensor bytes."""
    cells = {phase: result.cell(f"{phase}_peak_allocated_bytes") for phase in ("load", "prefill", "decode")}
    peaks = {phase: cell.value for phase, cell in cells.items() if cell and isinstance(cell.value, int | float)}
    return max(peaks, key=lambda phase: peaks[phase])


def _unsteady(entries: Iterable[Entry]) -> Iterator[str]:
    tests = [entry.test for entry in entries if any(map(_is_unsteady, entry.results))]
    if tests:
        yield f"warm-up ended before the timings were steady: {some(tests, LONGEST_LIST)}"


def _disturbed(entries: Iterable[Entry]) -> Iterator[str]:
    tests = [entry.test for entry in entries if any(result.observation.disturbed_requests for result in entry.results)]
    if tests:
        yield f"disturbed: CPU contention persisted after retries: {some(tests, LONGEST_LIST)}"


def _unlike_loop(entries: Iterable[Entry]) -> Iterator[str]:
    for entry in entries:
        for result in entry.results:
            cell = result.cell("tokens_unlike_loop")
            if cell and cell.value:
                what = f"{cell.value} of {result.workload.batch_size * result.workload.output_tokens} tokens"
                yield f"{result.workload.execution}: {what} differ from loop's: {entry.test}"


def _context_costs(entries: Iterable[Entry]) -> Iterator[str]:
    """Yield what context costs: a line for each quantization and batch size that several prompt lengths measured."""
    measured = (
        MeasuredWorkload(entry.test, result.workload, figures({cell.metric: cell.value for cell in result.cells}))
        for entry in entries
        for result in entry.results
    )
    for family in families(measured):
        costs: defaultdict[tuple[str, int, int], list[ContextCost]] = defaultdict(list)
        for cost in chain.from_iterable(map(family.context_costs, OVER_CONTEXT)):
            costs[cost.series, cost.lengths[0], cost.lengths[-1]].append(cost)
        for (series, low, high), found in costs.items():
            yield f"context: {family.name}, {series}, {low} to {high} in: {', '.join(map(str, found))}"


def _confirmation_cost(entries: Iterable[Entry]) -> Iterator[str]:
    costs = [entry.confirm_seconds for entry in entries if entry.confirm_seconds]
    if costs:
        yield f"confirmation: {plural(len(costs), 'test')} measured again in fresh processes, {sum(costs):.0f} s"


def _is_unsteady(result: TestResult) -> bool:
    """Return whether the warm-up reached its cap; a cap of 0 disables the warm-up."""
    return result.observation.warmup.requests > 0 and not result.observation.warmup.steady


def _missing_line(run: RunOutcome) -> str:
    count, few = len(run.missing), len(run.missing) <= LONGEST_LIST
    command = _command(run, "prune", *(run.missing if few else ["TEST"]))
    names = some(run.missing, LONGEST_LIST)
    missing = f"{plural(count, 'test')} of the baseline, not among those collected: {names}"
    return f"missing: {missing}. If it was removed on purpose: {command}"


def _bank_lines(run: RunOutcome, improved: list[Verdict]) -> Iterator[str]:
    """Yield one command per improved cell; without it, the old level stays in the comparison and blurs the new one."""
    for verdict in improved[:LONGEST_LIST]:
        cell, ratio = verdict.cell, f" ×{verdict.ratio:.3f}" if verdict.ratio else ""
        reason = ("--reason", f"improved{ratio}", "--record", "1" if run.counted else "5", *run.settings)
        words = ("accept", cell.test, cell.metric.name, *reason)
        # A counted figure may have been decided by another device's file, which the command finds.
        command = (
            _command(run, *words) if cell.metric.depends_on is None else shlex.join(["llmperf", *words, *run.place])
        )
        yield f"improved: to make this the new level, run: {command}"
    if len(improved) > LONGEST_LIST:
        yield f"improved: {len(improved) - LONGEST_LIST} more cells; llmperf accept takes patterns such as '*'"


def _command(run: RunOutcome, *words: str) -> str:
    key = (run.entries[0].device_key if run.entries else run.device_key) or "KEY"
    return shlex.join(["llmperf", *words, "--device-key", key, *run.place])


def _baseline_lines(run: RunOutcome) -> Iterator[str]:
    counted = [verdict for verdict in run.verdicts if verdict.counts and not verdict.against]
    improved = [verdict for verdict in counted if verdict.outcome is Outcome.IMPROVED]
    yield from _bank_lines(run, improved)
    if run.update is None:
        if any(verdict.outcome in _LACKING for verdict in counted) and not improved and decided(run.outcomes):
            yield f"some cells have no comparable baseline: record one with '{_record(run)}' and the same options"
    elif run.update.refusal:
        yield f"baseline NOT updated: {run.update.refusal}"
    elif run.update.baseline is not None:
        runs = run.update.baseline.runs
        sessions = len({run.session_id for run in runs})
        yield f"baseline updated: {run.update.path} holds {plural(len(runs), 'run')} of {plural(sessions, 'session')}"
        if run.profiles:
            yield run.profiles
