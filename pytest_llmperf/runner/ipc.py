"""JSON-line events from a child process to its parent: phases and test reports, as they happen.

Each line is passed to the operating system at once, so it survives even if the process is killed.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from pytest_llmperf.measure.progress import LOAD, SETUP, TEST_BODY, Moment

_STAGES = {"": (), SETUP: (LOAD, TEST_BODY), LOAD: (TEST_BODY,), TEST_BODY: ()}
"""The stages that may follow each stage. A test's body goes on after measuring, and so does its time."""


class Teller:
    """Writes events; registered in the process that runs the tests.

    Args:
        config: of that run.
        path: file to write to.
    """

    def __init__(self, config: pytest.Config, path: Path) -> None:
        self._config = config
        self._path = path

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Write that a test starts."""
        self._write({"start": nodeid})

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write a test's report, serialized as xdist's workers do it."""
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._write({"report": data})

    def tell_moment(self, moment: Moment) -> None:
        """Write that a phase starts."""
        self._write({"moment": asdict(moment)})

    def _write(self, line: dict[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, default=str) + "\n")


class Told:
    """State of a child process, read from its events.

    Attributes:
        running: Node id of the running test; empty between tests.
        stage: ``setup``, ``load`` or ``test body``; empty outside of these.
        since: Start of the stage, or of the time after a test: by the monotonic clock, in s.
        moment: The test's latest phase, and the memory at its start.
        reports: Each test's reports as pytest serialized them, by node id.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read_bytes = 0
        self.running = ""
        self.stage = ""
        self.since = time.monotonic()
        self.moment: Moment | None = None
        self.reports: dict[str, list[dict[str, Any]]] = {}

    def read(self) -> None:
        """Read new events; an incomplete last line is left for the next call."""
        if not self._path.exists() or self._path.stat().st_size <= self._read_bytes:
            return
        with self._path.open("rb") as file:
            file.seek(self._read_bytes)
            whole = file.read().rpartition(b"\n")[0]
        self._read_bytes += len(whole) + 1 if whole else 0
        for line in whole.splitlines():
            self._take(json.loads(line))

    @property
    def between_tests(self) -> bool:
        """Whether a test has ended and none has started since."""
        return bool(self.reports) and not self.running

    def finished(self) -> dict[str, list[dict[str, Any]]]:
        """Return the reports of the tests that have ended."""
        return {nodeid: reports for nodeid, reports in self.reports.items() if nodeid != self.running}

    def _take(self, line: dict[str, Any]) -> None:
        if "start" in line:
            self.running, self.moment = line["start"], None
            self._begin(SETUP)
        elif "moment" in line:
            self.moment = Moment(**line["moment"])
            if self.moment.phase in _STAGES[self.stage]:
                self._begin(self.moment.phase)
        else:
            self._take_report(line["report"])

    def _take_report(self, report: dict[str, Any]) -> None:
        self.reports.setdefault(report["nodeid"], []).append(report)
        if report["when"] == "call":
            self.stage = ""
        if report["when"] == "teardown":
            self.running = ""
            self._begin("")

    def _begin(self, stage: str) -> None:
        self.stage, self.since = stage, time.monotonic()
