"""Results of a run: entries per test and a summary, passed from workers to the session and to reports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from pytest_llmperf.metrics import Limit
from pytest_llmperf.storage.provenance import SideProof
from pytest_llmperf.storage.schema import Baseline, Run, TestResult
from pytest_llmperf.text import plural, printable, some
from pytest_llmperf.verdict.code_change import CodeChange
from pytest_llmperf.verdict.model import Outcome, Verdict
from pytest_llmperf.verdict.sentence import sentence, short_sentence
from pytest_llmperf.verdict.time_change import TimeChange
from pytest_llmperf.verdict.why import Why, moves_of, why_of
from pytest_llmperf.verdict.work_change import WorkChange, telling


class Entry(BaseModel):
    """Result of one test; sent from an xdist worker to its controller as JSON."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    test: str
    file: str = ""
    """File of the test, relative to pytest's rootdir; empty if unknown."""
    line: int | None = None
    device_key: str
    run: Run
    results: list[TestResult] = []
    verdicts: list[Verdict] = []
    timings: list[str] = []
    """Results of ``cuda_timer``, one line each; shown beside the recorded figures."""
    injected: list[str] = []
    fail_on: frozenset[Outcome] = frozenset()
    """Outcomes that fail the test in addition to a regression."""
    error: str = ""
    """Reason that the test has no verdict: the first line of its exception."""
    limits: dict[str, Limit] = {}
    """Limits by metric key, if another process judges the test's cells."""
    expected: bool = False
    """Whether the test is marked xfail; its regressions then fail nothing."""
    work_changes: list[WorkChange] = []
    """Counted work of each phase beside that of the baseline."""
    time_changes: list[TimeChange] = []
    """Operator profiles of the regressions."""
    code_changes: list[CodeChange] = []
    """What lies between this run and each base, if a verdict may need it."""
    confirm_seconds: float = 0.0
    """This test's share of the time of the confirmation runs."""

    @property
    def empty(self) -> bool:
        """Whether the test measured nothing and reported no error."""
        return not (self.results or self.error)

    @property
    def figures(self) -> list[tuple[str, int | float | str]]:
        """Measured values by metric; the name includes the workload's hash if the test measured several."""
        several = len(self.results) > 1
        return [
            (f"{cell.metric} {cell.workload}" if several else cell.metric, cell.value)
            for result in self.results
            for cell in result.cells
            if cell.value is not None
        ]

    @property
    def why(self) -> Why | None:
        """Why the test's figures changed; ``None`` if none regressed and no counted work changed."""
        work = telling(self.work_changes, self.verdicts)
        return why_of(moves_of(self.verdicts), work, self.time_changes, self.code_changes)

    @property
    def suspect(self) -> bool:
        """Whether fresh runs must confirm one of the verdicts before it may fail the test."""
        return not self.error and any(verdict.suspect for verdict in self.verdicts)

    def suspended(self, reason: str, *, anchored: str = "") -> Entry:
        """Return a copy in which suspected regressions are inconclusive, for ``reason``.

        Those found against an anchor get the reason ``anchored``, if given.
        """
        verdicts = [
            replace(verdict, outcome=Outcome.INCONCLUSIVE, reason=(verdict.against and anchored) or reason)
            if verdict.suspect
            else verdict
            for verdict in self.verdicts
        ]
        return self.model_copy(update={"verdicts": verdicts})

    @property
    def failing(self) -> list[Verdict]:
        """Verdicts that fail the test."""
        return [verdict for verdict in self.verdicts if verdict.fails or self._is_asked_to_fail(verdict)]

    @property
    def failed(self) -> bool:
        """Whether the test failed unexpectedly."""
        return bool(self.error or self.failing) and not self.expected

    def _is_asked_to_fail(self, verdict: Verdict) -> bool:
        improved_long_ago = verdict.against and verdict.outcome is Outcome.IMPROVED
        return verdict.counts and verdict.outcome in self.fail_on and not improved_long_ago


@dataclass(frozen=True)
class Update:
    """Result of a baseline update: the new baseline, or why it was not updated."""

    path: Path
    baseline: Baseline | None = None
    refusal: str = ""
    failed: bool = False
    """Whether the update was attempted and the file could not be read, locked or written."""


@dataclass
class RunOutcome:
    """Result of a whole run."""

    compared: bool
    """Whether verdicts were requested."""
    counted: bool = False
    """Whether work was counted and no times were measured."""
    device_key: str = ""
    """Key of the device that the tests should run on, known before any has run."""
    entries: list[Entry] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    """Tests of the baseline that are no longer collected."""
    update: Update | None = None
    profiles: str = ""
    """Message about the operator profiles of the recorded run."""
    troubles: dict[str, None] = field(default_factory=dict)
    """Errors of writing results or releasing resources at the end; they fail the run."""
    notes: dict[str, None] = field(default_factory=dict)
    """Errors of writing files that nobody requested; they do not fail the run."""
    place: tuple[str, ...] = ()
    """Options with which the ``llmperf`` command finds the same baseline folder."""
    settings: tuple[str, ...] = ()
    """Options with which pytest repeats the same measurement."""
    edited: str = ""
    """Differences between the working tree's baseline and the one that was read."""
    differences: list[str] = field(default_factory=list)
    """Differences of the environment from the baseline's latest run, or of head from base, if these were compared."""
    sides: Mapping[str, SideProof] = field(default_factory=dict)
    """Commit and imported packages of each side, if two revisions were compared."""
    fail_on: frozenset[Outcome] = frozenset()
    unreported: dict[str, None] = field(default_factory=dict)
    """Tests that a worker started but never reported, because it died while they waited for confirmation."""

    dead: str = ""
    """The device that failed, since which test, and why; empty if none failed."""
    not_run: int = 0
    """Number of tests that were not run after the device failed."""

    def take(self, found: Mapping[str, Any]) -> None:
        """Add the facts found by the process that measured the tests."""
        self.device_key = found.get("device_key", self.device_key)
        self.missing = found.get("missing", self.missing)
        self.edited = found.get("edited", self.edited)
        self.differences = list(dict.fromkeys((*self.differences, *found.get("differences", ()))))

    @property
    def verdicts(self) -> list[Verdict]:
        """Verdicts of all tests."""
        return [verdict for entry in self.entries for verdict in entry.verdicts]

    @property
    def outcomes(self) -> Counter[Outcome]:
        """Number of cells that can fail, by outcome; a test with an error counts as one."""
        counts = Counter(verdict.outcome for verdict in self.verdicts if verdict.counts)
        counts[Outcome.ERROR] += sum(bool(entry.error) for entry in self.entries)
        return counts

    @property
    def disturbed(self) -> dict[str, str]:
        """Tests whose timed figures are invalid, and why."""
        seen = ((entry.test, result.observation.invalid) for entry in self.entries for result in entry.results)
        return {test: why for test, why in seen if why}

    @property
    def breach(self) -> str:
        """Reason that the run fails although no test failed; empty if there is none."""
        if self.dead:
            goes_on = "with --llmperf-isolate the run continues in another process"
            return f"{self.dead}; tests not run: {self.not_run} ({goes_on})"
        if self.unreported:
            return (
                f"{plural(len(self.unreported), 'test')} started and never reported: {some(list(self.unreported), 3)}"
            )
        if self.missing and Outcome.MISSING in self.fail_on:
            return f"no result of {plural(len(self.missing), 'test')} of the baseline"
        if self.compared and Outcome.INVALID in self.fail_on and not (self.verdicts or self.failed):
            return "nothing was measured"
        return self._unwritten

    @property
    def _unwritten(self) -> str:
        """Failure to write or release something after the tests; empty if there is none."""
        if self.update and self.update.failed:
            return "the baseline could not be updated"
        if self.disturbed and self.update and self.update.refusal:
            return "disturbed runs are not recorded: repeat on a quiet machine"
        return "a file could not be written or a resource not released" if self.troubles else ""

    @property
    def failed(self) -> bool:
        """Whether a test failed."""
        return any(entry.failed for entry in self.entries)


def conclude(report: pytest.TestReport, entry: Entry) -> None:
    """Attach an entry to its test's report, and fail the report if a verdict or an error does.

    A report that has already failed keeps its text, since pytest shows the exception.
    """
    expected = hasattr(report, "wasxfail") or report.longreprtext.startswith(XPASS_STRICT)
    entry = entry.model_copy(update={"expected": expected})
    report.llmperf = entry.model_dump_json()  # type: ignore[attr-defined]  # xdist carries a report's attributes
    text = failure_text(entry.failing, entry.injected) or (entry.error if report.passed else "")
    if text:
        _fail(report, text)


XPASS_STRICT = "[XPASS(strict)] "
"""Prefix of pytest's failure text for a strict xfail test that passed."""


def _fail(report: pytest.TestReport, text: str) -> None:
    """Fail a report; that of an xfail test becomes xfailed, even if its body passed a strict xfail."""
    if report.longreprtext.startswith(XPASS_STRICT):
        report.wasxfail = report.longreprtext.removeprefix(XPASS_STRICT)
    report.outcome, report.longrepr = ("skipped" if hasattr(report, "wasxfail") else "failed"), text


def settle(report: pytest.TestReport, entry: Entry, *, confirm: bool) -> None:
    """Conclude a test, or attach its entry for the confirmation runs if a verdict is suspect."""
    if entry.suspect and confirm:
        report.llmperf = entry.model_dump_json()  # type: ignore[attr-defined]  # xdist carries a report's attributes
    else:
        conclude(report, entry)


def entry_of(report: pytest.TestReport) -> Entry | None:
    """Return the entry attached to a report."""
    text = getattr(report, "llmperf", None)
    if text is None:
        return None
    file, line, _ = report.location
    place = {"file": Path(file).as_posix(), "line": None if line is None else line + 1}
    return Entry.model_validate_json(text).model_copy(update=place)


def failure_text(failing: Sequence[Verdict], injected: Sequence[str]) -> str:
    """Return one line for pytest's short summary: the first failing verdict, and the ratios of the others.

    The run's own summary has a sentence for each.
    """
    if not failing:
        return ""
    first, *others = failing
    also = f"; also {', '.join(map(short_sentence, others))}" if others else ""
    mark = f" [injected {', '.join(injected)}]" if injected else ""
    return printable(f"{sentence(first)}{also}{mark}")
