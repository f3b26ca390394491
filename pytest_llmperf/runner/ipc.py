"""What a fresh process tells the one that waits for it: phases and reports, a line of JSON each, as they come.

A line is with the system once it is written: whatever kills the process, what it told before is there.
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
"""What may follow on a stage; a test's body comes back to itself after measuring, and its time goes on."""


class Teller:
    """Registered in the process that runs the tests.

    Args:
        config: of that run.
        path: file to write to.
    """

    def __init__(self, config: pytest.Config, path: Path) -> None:
        self._config = config
        self._path = path

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Tell that a test begins."""
        self._write({"start": nodeid})

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Tell how a stage of a test ended, the way xdist's workers do."""
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._write({"report": data})

    def tell_moment(self, moment: Moment) -> None:
        """Tell that a phase begins."""
        self._write({"moment": asdict(moment)})

    def _write(self, line: dict[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, default=str) + "\n")


class Told:
    """What was told so far.

    Attributes:
        running: Node id of the test that began and has not ended; empty between tests.
        stage: ``setup``, ``load`` or ``test body`` while it is in one.
        since: When that, or what comes after a test, began: by the monotonic clock, in s.
        moment: Its latest phase, and the memory as that began.
        reports: What pytest serialized of each test's reports, by node id.
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
        """Take in what was told since the last time; a line that is cut short waits."""
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
        """Whether a test has ended, and none begun since."""
        return bool(self.reports) and not self.running

    def finished(self) -> dict[str, list[dict[str, Any]]]:
        """The reports of the tests that came to their end."""
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
