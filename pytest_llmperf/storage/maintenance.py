"""Maintain a baseline: find tests, accept changes as epochs, and delete records."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pytest_llmperf.errors import UsageError
from pytest_llmperf.metrics import METRICS, Kind, Metric, is_counted
from pytest_llmperf.storage.merge import with_cells
from pytest_llmperf.storage.schema import Baseline, Epoch, Run
from pytest_llmperf.text import printable, short_name, some

LONGEST_LIST = 5


def find_tests(baseline: Baseline, pattern: str) -> list[str]:
    """Return the test with that name or ending, or all that match a pattern with ``*`` or ``?``.

    Brackets are literal, since they are part of the names of parametrized tests.

    Raises:
        UsageError: no test matches, or several share the ending; the message lists the nearest.
    """
    names = sorted({cell.test for cell in baseline.cells})
    if pattern in names:
        return [pattern]
    if "*" in pattern or "?" in pattern:
        found = [name for name in names if _fits(name, pattern) or _fits(short_name(name), pattern)]
    else:
        found = [name for name in names if name.endswith((f"::{pattern}", f"/{pattern}"))]
        if len(found) > 1:
            raise UsageError(
                f"{pattern!r} matches {len(found)} tests: {some(found, LONGEST_LIST)}; give a longer part of the name"
            )
    if not found:
        raise UsageError(f"no test {pattern!r} in this baseline; {_nearest(pattern, names)}")
    return found


def next_epochs(
    baseline: Baseline, tests: Iterable[str], metric: Metric | None, *, reason: str, commit: str | None
) -> list[Epoch]:
    """Return one epoch for each cell of the tests, for one metric or for all judged ones.

    An epoch has the time of the cell's latest run in the file, so that run and earlier ones belong to the old level.
    The run that showed the step is later. It counts if it is merged from its journal, and so does any new run.

    Raises:
        UsageError: a test has no such cell, or the metric is never judged.
    """
    latest = _latest_runs(baseline)
    return [
        Epoch(test=test, metric=name, time=latest[test, name], commit=commit, reason=reason)
        for test in tests
        for name in _metrics_of(test, metric, [name for known, name in latest if known == test])
    ]


def after_runs_of(kin: Iterable[Baseline], epochs: Iterable[Epoch]) -> list[Epoch]:
    """Return the epochs; those of counted metrics not before the cell's latest run in any of these baselines."""
    runs = [_latest_runs(baseline) for baseline in kin]

    def latest(epoch: Epoch) -> str:
        return max(epoch.time, *(found.get((epoch.test, epoch.metric), "") for found in runs))

    return [
        epoch.model_copy(update={"time": latest(epoch)}) if runs and is_counted(epoch.metric) else epoch
        for epoch in epochs
    ]


def with_epochs(baseline: Baseline, epochs: Iterable[Epoch]) -> Baseline:
    """Return the baseline with added epochs, except those equal to an earlier one in test, metric and time."""
    known = {(epoch.test, epoch.metric, epoch.time) for epoch in baseline.epochs}
    new = [epoch for epoch in epochs if (epoch.test, epoch.metric, epoch.time) not in known]
    return baseline.model_copy(update={"epochs": [*baseline.epochs, *new]})


@dataclass(frozen=True, kw_only=True)
class Condemned:
    """Records to delete: those that match every criterion given. ``before`` is a time, ISO 8601 in UTC."""

    tests: Sequence[str] = ()
    runs: Sequence[str] = ()
    sessions: Sequence[str] = ()
    before: str = ""

    def removed_from(self, baseline: Baseline) -> Baseline:
        """Return the baseline without these cells, and without runs, observations and workloads left without cells.

        A test's epochs are removed with its last cell. Epochs of removed runs stay, since a merge may bring the runs
        back.

        Raises:
            UsageError: the baseline holds no such test, run or session.
        """
        _refuse_unknown("run", self.runs, {run.run_id for run in baseline.runs})
        _refuse_unknown("session", self.sessions, {run.session_id for run in baseline.runs})
        tests = {test for pattern in self.tests for test in find_tests(baseline, pattern)}
        runs = {run.run_id for run in baseline.runs if self._fits(run)}
        left = with_cells(
            baseline, [cell for cell in baseline.cells if cell.run not in runs or (tests and cell.test not in tests)]
        )
        gone = tests - {cell.test for cell in left.cells}
        return left.model_copy(update={"epochs": [epoch for epoch in left.epochs if epoch.test not in gone]})

    def _fits(self, run: Run) -> bool:
        return (
            (not self.runs or run.run_id in self.runs)
            and (not self.sessions or run.session_id in self.sessions)
            and (not self.before or run.time < self.before)
        )


def _fits(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern.replace("[", "[[]"))


def _latest_runs(baseline: Baseline) -> dict[tuple[str, str], str]:
    """Return the time of the latest run of each judged test and metric."""
    times = {run.run_id: run.time for run in baseline.runs}
    latest: dict[tuple[str, str], str] = {}
    for cell in baseline.cells:
        metric = METRICS.get(cell.metric)
        if metric is not None and metric.kind is not Kind.INFORMATIVE:
            key = (cell.test, cell.metric)
            latest[key] = max(latest.get(key, ""), times[cell.run])
    return latest


def _metrics_of(test: str, metric: Metric | None, known: Collection[str]) -> Collection[str]:
    if metric is None:
        return known
    if metric.kind is Kind.INFORMATIVE:
        raise UsageError(f"{metric.name} is informative and never judged; choose another metric")
    if metric.key not in known:
        names = ", ".join(sorted(METRICS[name].name for name in known))
        raise UsageError(f"no {metric.name} of {printable(test)} in this baseline; found {names or 'no judged metric'}")
    return [metric.key]


def _refuse_unknown(what: str, given: Iterable[str], known: Collection[str]) -> None:
    for name in given:
        if name not in known:
            raise UsageError(f"no {what} {name!r} in this baseline; {_nearest(name, sorted(known))}")


def _nearest(name: str, known: Sequence[str]) -> str:
    """Suggest similar names; a test also matches by its short name."""
    parts = {part: whole for whole in known for part in (whole, short_name(whole))}
    near = list(dict.fromkeys(parts[part] for part in difflib.get_close_matches(name, parts)))
    if near:
        return f"did you mean {some(near, LONGEST_LIST)}?"
    return f"expected one of {some(known, LONGEST_LIST)}" if known else "it has none"
