"""Process isolation: each model's tests run in a fresh subprocess, so that a crash takes no other test along.

This process loads no model. It waits, and judges after a subprocess has ended, so that nothing else runs while one
measures.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import count
from typing import Any

import psutil
import pytest

from pytest_llmperf.measure.progress import LOAD, SETUP, TEST_BODY, Moment
from pytest_llmperf.measure.timeout import timed_out
from pytest_llmperf.report.terminal import write_now
from pytest_llmperf.runner.context import PlannedTest, Workplace
from pytest_llmperf.runner.ipc import Told
from pytest_llmperf.storage.schema import TestResult
from pytest_llmperf.system.paths import run_folder
from pytest_llmperf.system.pytest_process import ProcessExit, run_replica
from pytest_llmperf.verdict.outcome import entry_of, settle

GRACE_S = 5.0
"""Seconds past a time limit after which the parent kills a subprocess that may be stuck where no signal reaches it."""


ENDING_S = 60.0
"""Seconds that a subprocess may take to end after its last test: releasing the model waits for the device."""


class Isolator:
    """Runs tests in fresh subprocesses, with ``--llmperf-isolate``.

    Args:
        config: of the run; the subprocesses get its arguments.
        workplace: judges the results.
        tests: the perf tests by node id, in their order.
    """

    def __init__(self, config: pytest.Config, workplace: Workplace, tests: Mapping[str, PlannedTest]) -> None:
        self._config = config
        self._workplace = workplace
        self._tests = tests
        self._reports: dict[str, list[pytest.TestReport]] = {}
        self._numbers = count(1)

    def run(self, item: pytest.Item, _nextitem: pytest.Item | None) -> list[pytest.TestReport]:
        """Return the reports of a test's setup, call and teardown; a model's first test waits for all of its tests."""
        while item.nodeid not in self._reports:
            self._run_process(item)
        return self._reports[item.nodeid]

    def _run_process(self, item: pytest.Item) -> None:
        """Run the rest of a model's tests in a subprocess, until all have run or one of them ends the process."""
        spec = self._tests[item.nodeid].spec
        left = [name for name, test in self._tests.items() if test.spec == spec and name not in self._reports]
        watch, ended = self._measure(left)
        if watch.why and not watch.told.running:
            write_now(self._config, f"llmperf: {watch.why} (see {ended.log})")
        finished = {name: reports for name, reports in watch.told.finished().items() if name in left}
        self._reports |= {name: self._settled(name, reports) for name, reports in finished.items()}
        dead = [watch.told.running] if watch.told.running in left else []
        for name in dead or ([] if finished else left):
            self._reports[name] = self._failed(item, name, watch, ended)

    def _measure(self, names: Sequence[str]) -> tuple[_Watch, ProcessExit]:
        run = self._workplace.run
        journal = run_folder(self._config.rootpath, "isolate", run.run_id) / f"{next(self._numbers)}.jsonl"
        told = journal.with_suffix(".told")
        watch = _Watch(Told(told), self._workplace, self._tests)
        ended = run_replica(
            self._config,
            [self._tests[name].key for name in names],
            journal,
            session_id=run.session_id,
            extra=[f"--llmperf-tell={told}"],
            watch=watch,
        )
        watch.told.read()
        return watch, ended

    def _settled(self, name: str, serialized: Sequence[dict[str, Any]]) -> list[pytest.TestReport]:
        hook = self._config.hook
        reports = [hook.pytest_report_from_serializable(config=self._config, data=data) for data in serialized]
        for report in reports:
            if isinstance(report.longrepr, list):  # the location and reason of a skip: JSON has no tuples
                report.longrepr = tuple(report.longrepr)
            if theirs := entry_of(report):
                results = [_of_run(result, self._workplace.run.run_id) for result in theirs.results]
                entry = self._workplace.entry(
                    self._tests[name].key, results, timings=theirs.timings, error=theirs.error
                )
                settle(report, entry, confirm=self._workplace.options.confirms)
        return reports

    def _failed(self, item: pytest.Item, name: str, watch: _Watch, ended: ProcessExit) -> list[pytest.TestReport]:
        """Return the reports of a test that ended its subprocess, or that no subprocess reached."""
        item = next(one for one in item.session.items if one.nodeid == name)
        if watch.told.running == name:
            text = watch.why or f"{_how(ended)} {watch.moment}"
        else:
            text = f"its process ended before the test: exit code {ended.exit_code}, {ended.last_line}"
        entry = self._workplace.entry(self._tests[name].key, [], error=f"{text} (see {ended.log})")
        when = "setup" if watch.told.stage in (SETUP, LOAD) or watch.told.running != name else "call"
        failed = _report(item, when)
        settle(failed, entry, confirm=False)
        return [*([_report(item, "setup")] if when == "call" else []), failed, _report(item, "teardown")]


class _Watch:
    """Follows the events of a subprocess, and decides when to kill it."""

    def __init__(self, told: Told, workplace: Workplace, tests: Mapping[str, PlannedTest]) -> None:
        self.told = told
        self.why = ""
        self._workplace = workplace
        self._tests = tests
        self._sampled: tuple[Moment | None, int] = (None, 0)

    def __call__(self, pid: int) -> bool:
        """Whether to kill the subprocess, because a test or its end took too long."""
        self.told.read()
        with suppress(psutil.Error):
            self._sampled = (self.told.moment, psutil.Process(pid).memory_info().rss)
        spent_s, limit_s = time.monotonic() - self.told.since, self._limit_s()
        if limit_s is not None and spent_s > limit_s + GRACE_S:
            self.why = timed_out(limit_s, str(self.moment))
        elif self.told.between_tests and spent_s > ENDING_S:
            self.why = f"killed a process that did not end within {ENDING_S:g} s of its last test"
        return bool(self.why)

    @property
    def moment(self) -> Moment:
        """The latest phase, with the resident set as last sampled."""
        told = self.told.moment or Moment(SETUP)
        sampled = self._sampled[1] if self._sampled[0] == self.told.moment else 0
        return replace(told, rss_bytes=max(told.rss_bytes or 0, sampled) or None)

    def _limit_s(self) -> float | None:
        test = self._tests.get(self.told.running)
        limits = {LOAD: self._workplace.load_limit_s, TEST_BODY: self._workplace.body_limit_s}
        return limits[self.told.stage](test.key) if test and self.told.stage in limits else None


def _how(ended: ProcessExit) -> str:
    if ended.exit_code >= 0:
        return f"its process ended with exit code {ended.exit_code}"
    number = -ended.exit_code
    known = number in {one.value for one in signal.Signals}
    name = signal.Signals(number).name if known else f"signal {number}"
    hint = " (probably out of memory)" if name == "SIGKILL" else ""
    return f"its process was killed by {name}{hint}"


def _of_run(result: TestResult, run_id: str) -> TestResult:
    """Return a result with this run's id: all subprocesses of a run are one run."""
    return result.model_copy(
        update={
            "observation": result.observation.model_copy(update={"run": run_id}),
            "cells": [cell.model_copy(update={"run": run_id}) for cell in result.cells],
        }
    )


def _report(item: pytest.Item, when: Any) -> pytest.TestReport:
    return pytest.TestReport(item.nodeid, item.location, dict.fromkeys(item.keywords, 1), "passed", None, when)
