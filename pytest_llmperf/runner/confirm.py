"""Confirmation: possible regressions are measured again in fresh subprocesses before their tests may fail.

The reports of such tests are held back until all tests have run and the model is released. One series of subprocesses
then measures all of them. Each test gets a single final report; terminal, JUnit file and exit code depend on it alone.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

from pytest_llmperf.errors import LlmperfError
from pytest_llmperf.report.terminal import write_now
from pytest_llmperf.runner.context import Workplace
from pytest_llmperf.runner.once import Protocol, RunTest, log_reports
from pytest_llmperf.runner.profiling import explained
from pytest_llmperf.runner.session import Session
from pytest_llmperf.storage.process_result import ProcessResult
from pytest_llmperf.storage.schema import TestResult
from pytest_llmperf.system.paths import run_folder
from pytest_llmperf.system.pytest_process import ProcessExit, run_replica
from pytest_llmperf.text import plural
from pytest_llmperf.verdict.model import CellKey
from pytest_llmperf.verdict.outcome import Entry, conclude, entry_of

NOT_CONFIRMED = "possible regression, not confirmed"
ENDED_EARLY = f"{NOT_CONFIRMED}: the run ended before fresh runs could measure it again"


@dataclass(frozen=True)
class Held:
    """A test whose reports are held back: those of its setup, call and teardown."""

    item: pytest.Item
    reports: list[pytest.TestReport]
    entry: Entry


@dataclass(frozen=True)
class Replica:
    """The results of one fresh subprocess, and how it ended."""

    measured: ProcessResult
    ended: ProcessExit

    @property
    def values(self) -> dict[CellKey, float]:
        """The measured values that are numbers."""
        return {key: value for key, value in self.measured.values.items() if isinstance(value, int | float)}

    def has(self, result: TestResult) -> bool:
        """Whether the subprocess measured the workload of a result."""
        return any(key[:2] == (result.observation.test, result.workload.hash) for key in self.values)

    def why_invalid(self, test: str) -> str:
        """Return why its timings of a test are invalid; empty if they are valid."""
        return next((why for key, why in self.measured.invalid.items() if key[0] == test), "")

    def why_not(self, test: str) -> str:
        """Return why it did not measure a test."""
        note = self.measured.notes.get(test)
        told = (note and note.error) or f"exit code {self.ended.exit_code}, {self.ended.last_line}"
        return f"{told} (see {self.ended.log})"


class Confirmer(Protocol):
    """Runs tests and confirms possible regressions; registered if ``Options.confirms``.

    Args:
        config: of the run; the subprocesses get its arguments.
        workplace: judges the results.
        session: stores the results; ``None`` in an xdist worker, whose controller has it.
        run: runs a test and returns its reports; ``None`` for pytest's own protocol, in this process.
    """

    def __init__(
        self, config: pytest.Config, workplace: Workplace, session: Session | None, run: RunTest | None = None
    ) -> None:
        super().__init__(run or (lambda item, nextitem: runtestprotocol(item, log=False, nextitem=nextitem)))
        self._config = config
        self._workplace = workplace
        self._session = session
        self._held: list[Held] = []

    def hand_over(self, item: pytest.Item, reports: list[pytest.TestReport]) -> None:
        """Log a test's reports, or hold them back if it may have regressed."""
        entry = next(filter(None, map(entry_of, reports)), None)
        if entry and entry.suspect:
            self._hold(Held(item, reports, entry))
        else:
            super().hand_over(item, reports)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self) -> Generator[None, Any, Any]:
        """Confirm the tests held back, once every test has run."""
        try:
            result = yield
        except BaseException:
            self._conclude([held.entry.suspended(ENDED_EARLY) for held in self._held])
            raise
        if self._held:
            self._confirm()
        return result

    def _hold(self, held: Held) -> None:
        self._held.append(held)
        if self._session:
            self._session.keep(held.entry)

    def _confirm(self) -> None:
        rounds = self._workplace.options.confirm
        try:
            self._workplace.release()
            replicas = [self._replica(number, rounds) for number in range(1, rounds + 1)]
        except (OSError, RuntimeError, LlmperfError) as error:
            self._conclude([_as_error(held.entry, f"cannot start fresh runs: {error}") for held in self._held])
            return
        seconds = sum(replica.ended.seconds for replica in replicas) / len(self._held)
        entries = [_with_errors(held.entry, replicas) for held in self._held]
        confirmed = self._workplace.confirmed(entries, [replica.values for replica in replicas])
        sound = [_if_sound(held.entry, entry, replicas) for held, entry in zip(self._held, confirmed, strict=True)]
        told = explained(sound, self._config, self._workplace)
        self._conclude([entry.model_copy(update={"confirm_seconds": seconds}) for entry in told])

    def _conclude(self, entries: Sequence[Entry]) -> None:
        """Log all reports that were held back, even if another plugin's hook raises at one of them."""
        with ExitStack() as stack:
            for held, entry in reversed([*zip(self._held, entries, strict=True)]):
                stack.callback(self._log, held, entry)
            self._held = []

    def _log(self, held: Held, entry: Entry) -> None:
        call = next(report for report in held.reports if report.when == "call")
        conclude(call, entry)
        _make_current(self._config, held.item)
        log_reports(held.item, held.reports)

    def _replica(self, number: int, rounds: int) -> Replica:
        suspects = plural(len(self._held), "possible regression")
        write_now(self._config, f"llmperf: measuring {suspects} again: fresh run {number} of {rounds}")
        folder = run_folder(self._config.rootpath, "confirm", self._workplace.run.run_id)
        journal, tests = folder / f"{number}.jsonl", [held.entry.test for held in self._held]
        ended = run_replica(self._config, tests, journal, session_id=self._workplace.run.session_id)
        return Replica(ProcessResult.read(journal), ended)


def _make_current(config: pytest.Config, item: pytest.Item) -> None:
    """Make this the current item of an xdist worker, which sends each report on behalf of its current item."""
    if hasattr(config, "workerinput"):
        worker = next(plugin for plugin in config.pluginmanager.get_plugins() if hasattr(plugin, "item_index"))
        worker.item_index = item.session.items.index(item)


def _with_errors(entry: Entry, replicas: Sequence[Replica]) -> Entry:
    """Turn the entry into an error if a subprocess did not measure it: it is neither confirmed nor cleared."""
    for number, replica in enumerate(replicas, start=1):
        if not all(map(replica.has, entry.results)):
            why = replica.why_not(entry.test)
            return _as_error(entry, f"fresh run {number} of {len(replicas)} did not measure it: {why}")
    return entry


def _if_sound(first: Entry, confirmed: Entry, replicas: Sequence[Replica]) -> Entry:
    """Return the confirmed entry, or an inconclusive one if a subprocess was disturbed: that settles nothing."""
    for number, replica in enumerate(replicas, start=1):
        if not confirmed.error and (why := replica.why_invalid(first.test)):
            disturbed = f"fresh run {number} of {len(replicas)} was disturbed"
            return first.suspended(f"{NOT_CONFIRMED}: {disturbed}: {why}")
    return confirmed


def _as_error(entry: Entry, why: str) -> Entry:
    return entry.model_copy(update={"error": f"{NOT_CONFIRMED}: {why}", "verdicts": []})
