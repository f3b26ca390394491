"""Processes whose figures stand in the files of the checkout that they run in."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from repository import PlayedRuns

from pytest_llmperf.storage.provenance import Imported, report_path
from pytest_llmperf.storage.schema import OperatorTime, PhaseProfile
from pytest_llmperf.system.pytest_process import ProcessExit

TEST = "test_perf.py::test_decode"


class PlayedCommits(PlayedRuns):
    """Stands for `run_perf_tests`: files ``tpot_ms``, ``operators_per_token`` and so on hold a commit's figures.

    Times scatter by ``spread``; a run that only counts has none, and a profile finds them all in ``aten::mm``. A
    checkout with a file ``error`` fails its test; one with ``dies`` ends its process with the exit code in it. After
    ``most`` processes the user interrupts.
    """

    def __init__(self, *, spread: float = 0.0, most: int = 10**6) -> None:
        super().__init__(lambda _arm, _number: {})
        self.spread = spread
        self.most = most
        self.counted: list[Path] = []
        self.timed: list[Path] = []

    @property
    def processes(self) -> int:
        return len(self.counted) + len(self.timed)

    def __call__(self, arguments: Sequence[str], **process: Any) -> ProcessExit:
        if self.processes >= self.most:
            raise KeyboardInterrupt
        folder, counts = process["folder"], "--llmperf-counted" in arguments
        (self.counted if counts else self.timed).append(folder)
        journal = Path(next(word.partition("=")[2] for word in arguments if word.startswith("--llmperf-journal=")))
        process["log"].write_text("E  played\n")
        if (dies := folder / "dies").exists():
            return ProcessExit(int(dies.read_text()), 1.0, process["log"])
        played = self._played(folder, counts=counts)
        if any(word.startswith("--llmperf-profile=") for word in arguments):
            times = [OperatorTime(name="aten::mm", self_ms=played["tpot_ms"], calls=1.0)]
            played["profile"] = {"decode": PhaseProfile(wall_ms=played["tpot_ms"], operators=times)}
        self._write(journal, {TEST: played})
        report_path(journal).write_text(Imported().model_dump_json())
        return ProcessExit(0, 1.0, process["log"])

    def _played(self, folder: Path, *, counts: bool) -> Any:
        if (error := folder / "error").exists():
            return ValueError(error.read_text())
        noise = math.exp(random.Random(self.processes).gauss(0.0, self.spread))
        found = {path.name: float(path.read_text()) for path in folder.glob("*_per_token")}
        if counts:
            return found
        times = {path.name: float(path.read_text()) * noise for path in folder.glob("*_ms")}
        return found | times | {path.name: float(path.read_text()) for path in folder.glob("*_bytes")}
