"""What became of a run: what workers send, sessions collect and reports tell."""

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
from pytest_llmperf.verdict.explanation import Explanation
from pytest_llmperf.verdict.model import Outcome, Verdict
from pytest_llmperf.verdict.sentence import sentence, short_sentence


class Entry(BaseModel):
    """What became of one test; travels from a worker to its controller as JSON."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    test: str
    file: str = ""
    """Where the test is written, relative to pytest's root; empty where that is not known."""
    line: int | None = None
    device_key: str
    run: Run
    results: list[TestResult] = []
    verdicts: list[Verdict] = []
    timings: list[str] = []
    """What ``cuda_timer`` gave the test, a line each: told beside what is recorded."""
    injected: list[str] = []
    fail_on: frozenset[Outcome] = frozenset()
    """Outcomes that fail the test beside a regression."""
    error: str = ""
    """Why the test has no verdict: the first line of what it raised."""
    limits: dict[str, Limit] = {}
    """By metric key, where somebody else is to judge the test's cells."""
    expected: bool = False
    """The test is marked to fail: then its regressions fail nothing."""
    explanations: list[Explanation] = []
    """Where the time went of what regressed."""
    confirm_seconds: float = 0.0
    """This test's share of the time that fresh runs took to confirm what looked slower."""

    @property
    def empty(self) -> bool:
        """Whether the test measured nothing at all, and nothing says why."""
        return not (self.results or self.error)

    @property
    def figures(self) -> list[tuple[str, int | float | str]]:
        """What was measured, by metric; with the workload's hash where the test measured several."""
        several = len(self.results) > 1
        return [
            (f"{cell.metric} {cell.workload}" if several else cell.metric, cell.value)
            for result in self.results
            for cell in result.cells
            if cell.value is not None
        ]

    @property
    def suspect(self) -> bool:
        """Whether fresh runs must confirm one of the verdicts before it may fail the test."""
        return not self.error and any(verdict.suspect for verdict in self.verdicts)

    def suspended(self, reason: str, *, anchored: str = "") -> Entry:
        """The same with what looks slower inconclusive, for that reason; since an anchor for the other, if given."""
        verdicts = [
            replace(verdict, outcome=Outcome.INCONCLUSIVE, reason=(verdict.against and anchored) or reason)
            if verdict.suspect
            else verdict
            for verdict in self.verdicts
        ]
        return self.model_copy(update={"verdicts": verdicts})

    @property
    def failing(self) -> list[Verdict]:
        """The verdicts that fail the test."""
        return [verdict for verdict in self.verdicts if verdict.fails or self._is_asked_to_fail(verdict)]

    @property
    def failed(self) -> bool:
        """Whether the test failed, which it was not expected to."""
        return bool(self.error or self.failing) and not self.expected

    def _is_asked_to_fail(self, verdict: Verdict) -> bool:
        improved_long_ago = verdict.against and verdict.outcome is Outcome.IMPROVED
        return verdict.counts and verdict.outcome in self.fail_on and not improved_long_ago


@dataclass(frozen=True)
class Update:
    """What became of the baseline: the file and its window, or why it was left alone."""

    path: Path
    baseline: Baseline | None = None
    refusal: str = ""
    failed: bool = False
    """Whether it was tried, and the file could not be read, locked or written."""


@dataclass
class RunOutcome:
    """What became of a whole run."""

    compared: bool
    """Whether verdicts were asked for at all."""
    device_key: str = ""
    """Of the device that the tests were to run on, before any has."""
    entries: list[Entry] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    """Tests of the baseline that are not collected any more."""
    update: Update | None = None
    profiles: str = ""
    """What became of the operator profiles of what was recorded."""
    troubles: dict[str, None] = field(default_factory=dict)
    """What could not be written down or released at the end, and why: it fails the run."""
    notes: dict[str, None] = field(default_factory=dict)
    """What could not be written although nobody had asked for it, and why."""
    place: tuple[str, ...] = ()
    """What the ``llmperf`` command needs to find the same folder of baselines."""
    settings: tuple[str, ...] = ()
    """What pytest needs to measure the same again."""
    edited: str = ""
    """How the working tree's baseline differs from the one that was read."""
    differences: list[str] = field(default_factory=list)
    """In what this machine differs from the baseline's latest run."""
    sides: Mapping[str, SideProof] = field(default_factory=dict)
    """Of a comparison of two revisions: what each side ran."""
    fail_on: frozenset[Outcome] = frozenset()
    unreported: dict[str, None] = field(default_factory=dict)
    """Tests that began in a worker and of which nothing came: it died while they waited to be confirmed."""

    dead: str = ""
    """Which device died since which test, and why; empty if none did."""
    not_run: int = 0
    """How many tests were not tried since then."""

    def take(self, found: Mapping[str, Any]) -> None:
        """Take in what was found where the tests were measured."""
        self.device_key = found.get("device_key", self.device_key)
        self.missing = found.get("missing", self.missing)
        self.edited = found.get("edited", self.edited)
        self.differences = list(dict.fromkeys((*self.differences, *found.get("differences", ()))))

    @property
    def verdicts(self) -> list[Verdict]:
        """Those of all tests."""
        return [verdict for entry in self.entries for verdict in entry.verdicts]

    @property
    def outcomes(self) -> Counter[Outcome]:
        """How many cells that can fail came out how; a test that raised counts as one."""
        counts = Counter(verdict.outcome for verdict in self.verdicts if verdict.counts)
        counts[Outcome.ERROR] += sum(bool(entry.error) for entry in self.entries)
        return counts

    @property
    def disturbed(self) -> dict[str, str]:
        """Tests of which nothing that was timed may be compared, and why."""
        seen = ((entry.test, result.observation.invalid) for entry in self.entries for result in entry.results)
        return {test: why for test, why in seen if why}

    @property
    def breach(self) -> str:
        """What fails the run although it failed no test; empty if nothing does."""
        if self.dead:
            return f"{self.dead}; tests not run: {self.not_run} (--llmperf-isolate goes on in another process)"
        if self.unreported:
            return f"no report of {plural(len(self.unreported), 'test')} that began: {some(list(self.unreported), 3)}"
        if self.missing and Outcome.MISSING in self.fail_on:
            return f"no result of {plural(len(self.missing), 'test')} of the baseline"
        if self.compared and Outcome.INVALID in self.fail_on and not (self.verdicts or self.failed):
            return "nothing was measured"
        return self._unwritten

    @property
    def _unwritten(self) -> str:
        """What could not be done once the tests had run."""
        if self.update and self.update.failed:
            return "the baseline could not be updated"
        if self.disturbed and self.update and self.update.refusal:
            return "a run that was disturbed is not recorded: make the machine quiet and run it again"
        return "not everything could be written or released" if self.troubles else ""

    @property
    def failed(self) -> bool:
        """Whether a test failed."""
        return any(entry.failed for entry in self.entries)


def conclude(report: pytest.TestReport, entry: Entry) -> None:
    """Attach an entry to its test's report, and make the report fail if a verdict or an error does.

    A report that failed by itself stays as it is: what the test raised is told by pytest.
    """
    expected = hasattr(report, "wasxfail") or report.longreprtext.startswith(XPASS_STRICT)
    entry = entry.model_copy(update={"expected": expected})
    report.llmperf = entry.model_dump_json()  # type: ignore[attr-defined]  # xdist carries a report's attributes
    text = failure_text(entry.failing, entry.injected) or (entry.error if report.passed else "")
    if text:
        _fail(report, text)


XPASS_STRICT = "[XPASS(strict)] "
"""How pytest begins the reason why a test that had to fail did not."""


def _fail(report: pytest.TestReport, text: str) -> None:
    """A test that was expected to fail has done so, as pytest reports it; its body alone had passed against that."""
    if report.longreprtext.startswith(XPASS_STRICT):
        report.wasxfail = report.longreprtext.removeprefix(XPASS_STRICT)
    report.outcome, report.longrepr = ("skipped" if hasattr(report, "wasxfail") else "failed"), text


def settle(report: pytest.TestReport, entry: Entry, *, confirm: bool) -> None:
    """Conclude a test, unless fresh runs are to confirm first: then the report carries its entry to the confirmer."""
    if entry.suspect and confirm:
        report.llmperf = entry.model_dump_json()  # type: ignore[attr-defined]  # xdist carries a report's attributes
    else:
        conclude(report, entry)


def entry_of(report: pytest.TestReport) -> Entry | None:
    """The entry that a report carries."""
    text = getattr(report, "llmperf", None)
    if text is None:
        return None
    file, line, _ = report.location
    place = {"file": Path(file).as_posix(), "line": None if line is None else line + 1}
    return Entry.model_validate_json(text).model_copy(update=place)


def failure_text(failing: Sequence[Verdict], injected: Sequence[str]) -> str:
    """One line, for pytest's short summary: the first verdict that fails a test, and how far the others went.

    The run's own summary has a sentence of each.
    """
    if not failing:
        return ""
    first, *others = failing
    also = f"; also {', '.join(map(short_sentence, others))}" if others else ""
    mark = f" [injected {', '.join(injected)}]" if injected else ""
    return printable(f"{sentence(first)}{also}{mark}")
