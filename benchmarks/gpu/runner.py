"""Runs stages: each step in a process of its own, in what time is left."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from gpu.process import Processes, ProcessExit
from gpu.results import NEEDS_CUDA, Line, Results, counts, latest, read, table
from gpu.step import Place, Stage, Step, last_line

GENEROSITY = 1.5
SHORTEST_S = 1.0
"""A step with less time than that is not begun."""
BUILD = "import sys; from pytest_llmperf.models.synthetic import prepare; prepare(sys.argv[1])"


class Budget:
    """Seconds that are shared by what is still to run."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left_s(self) -> float:
        """Until it is spent."""
        return max(0.0, self._end - time.monotonic())

    def limit_s(self, wanted: float, *, of: float) -> float:
        """The limit of one that should take ``wanted`` seconds, where all that are left should take ``of``.

        It is its share of what is left, and half as much again: what is killed has told less than it could have, and
        what comes later may need less than its share.
        """
        return self.left_s * min(1.0, GENEROSITY * wanted / of)


def _name_of_run() -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {os.getpid()}"


@dataclass(frozen=True)
class Day:
    """One call of the script.

    Args:
        script: runs one step where ``--step`` names it.
        device: as the command line names it.
        out: folder of the results.
    """

    script: Path
    device: str
    out: Path
    processes: Processes = field(default_factory=Processes)
    run: str = field(default_factory=_name_of_run)

    def run_stages(self, stages: Sequence[Stage], seconds: float) -> None:
        """Run them in order; the table is written after each."""
        budget = Budget(seconds)
        for number, stage in enumerate(stages):
            limit_s = budget.limit_s(stage.seconds, of=sum(one.seconds for one in stages[number:]))
            print(f"{stage.name}: at most {limit_s:.0f} s", flush=True)
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                self._run_stage(stage, Place(self.device, Path(folder)), Budget(limit_s))
            self.write_table()

    def lines(self) -> list[Line]:
        """The latest of each stage."""
        return latest(read(self._file))

    def write_table(self) -> None:
        """Write the table anew."""
        lines = self.lines()
        (self.out / "table.md").write_text(f"{table(lines)}\n\n{counts(lines)}\n", encoding="utf-8")

    @contextlib.contextmanager
    def building(self, model: str) -> Iterator[None]:
        """Build a model meanwhile, on the CPU; where the block ends, nothing runs any more."""
        output = self.out / "build.running"
        self.processes.start([sys.executable, "-c", BUILD, model], output=output, variables={})
        try:
            yield
        finally:
            self.processes.kill_all()
            output.unlink(missing_ok=True)

    @property
    def _file(self) -> Path:
        return self.out / "results.jsonl"

    def _run_stage(self, stage: Stage, place: Place, budget: Budget) -> None:
        if stage.at_once > 1 and place.is_cuda:
            with ThreadPoolExecutor(stage.at_once) as pool:
                list(pool.map(lambda step: self._run_step(stage, step, place, budget.left_s), stage.steps))
            return
        for number, step in enumerate(stage.steps):
            limit_s = budget.limit_s(step.seconds, of=sum(one.seconds for one in stage.steps[number:]))
            self._run_step(stage, step, place, limit_s)

    def _run_step(self, stage: Stage, step: Step, place: Place, limit_s: float) -> None:
        """Run one, or write why not; how it ended, it cannot write itself."""
        results = Results(self._file, run=self.run, stage=stage.name, step=step.name)
        if step.needs_cuda and not place.is_cuda:
            results.skip(step.name, NEEDS_CUDA)
        elif limit_s < SHORTEST_S:
            results.skip(step.name, "no time was left")
        elif trouble := self._trouble(f"{stage.name}/{step.name}", results, place, limit_s):
            results.fail(f"{step.name} ends by itself", expected="exit 0, with checks made", found=trouble)

    def _trouble(self, name: str, results: Results, place: Place, limit_s: float) -> str:
        """Run a step; what was wrong with the way in which it ended, empty for nothing."""
        command = [sys.executable, str(self.script), f"--device={place.device}", f"--out={self.out}"]
        command += [f"--step={name}", f"--folder={place.folder}"]
        variables = {**results.variables, "HF_HUB_OFFLINE": "1"}  # nothing is fetched
        output = self.out / f"{name.replace('/', '-')}.running"
        ended = self.processes.run(command, limit_s=limit_s, output=output, variables=variables)
        self._keep(output, ended, name)
        if ended.code is None:
            return f"killed after {limit_s:.1f} s; last line: {last_line(ended.output)}"
        if ended.code:
            return f"exit {ended.code}: {last_line(ended.output)}"
        return "" if results.written() else "no check was made"

    def _keep(self, output: Path, ended: ProcessExit, name: str) -> None:
        """Move what a step has printed into the log."""
        with (self.out / "log.txt").open("a", encoding="utf-8") as log:
            log.write(f"\n===== {name}: exit {ended.code}, {ended.seconds:.1f} s =====\n{ended.output}")
        output.unlink(missing_ok=True)
