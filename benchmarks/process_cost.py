"""Where the time of one fresh process of `llmperf ab` goes on this machine's CPU.

Prints two Markdown tables for each of the processes asked for: seconds by phase, by the wall's clock and of the
processor, and seconds of importing by package. Imports are made in several phases, so the second table repeats a part
of the first. Options after ``--`` are pytest's. Another checkout is measured with ``PYTHONPATH``::

    python benchmarks/process_cost.py [one] [twelve] [matrix] [-- --llmperf-times-only]
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PROCESSES = {
    "one": ("--llmperf-quantization=nf4", "--llmperf-batch-sizes=1"),
    "twelve": (),  # three quantizations at four batch sizes
    "matrix": ("--llmperf-quantization=bf16,fp16,nf4,nf4-dq,int8,int8-decomp", "--llmperf-batch-sizes=1,8"),
}
FEW = 0.02
"""Packages that take less than this share of all imports are added up."""
_IMPORT = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s*([^.\s]+)")


class Phases:
    """A pytest plugin that adds up wall and processor seconds by phase, and prints them when the process ends."""

    def __init__(self, start: float) -> None:
        self._seconds: dict[str, tuple[float, float]] = {}
        self._phase, self._since = "interpreter, imports, collection", (start, 0.0)

    def enter(self, phase: str) -> None:
        """Begin a phase, which ends the one before."""
        now = (time.monotonic(), time.process_time())
        wall, cpu = self._seconds.get(self._phase, (0.0, 0.0))
        self._seconds[self._phase] = (wall + now[0] - self._since[0], cpu + now[1] - self._since[1])
        self._phase, self._since = phase, now

    @pytest.hookimpl(trylast=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Listen to the phases of the run, and to steps that are no phases of their own."""
        from pytest_llmperf.measure import generation, peaks
        from pytest_llmperf.runner import WORKPLACE

        session.config.stash[WORKPLACE].progress.listener = lambda moment: self.enter(moment.phase)
        self._within(peaks, "copy_bandwidth", "copy bandwidth")
        self._within(peaks, "matrix_product_rate", "rates of matrix products")
        self._within(generation, "_checked_on", "counting with a second prompt")
        self.enter("before the first model")

    def _within(self, module: Any, name: str, phase: str) -> None:
        """Make a phase of a function's calls."""
        function: Callable[..., Any] = getattr(module, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            before = self._phase
            self.enter(phase)
            try:
                return function(*args, **kwargs)
            finally:
                self.enter(before)

        setattr(module, name, timed)

    def pytest_sessionfinish(self) -> None:
        """The last test has ended."""
        self.enter("end")

    def lines(self) -> list[str]:
        """Phase, wall and processor seconds, separated by tabs."""
        self.enter("")
        return [f"{phase}\t{wall}\t{cpu}" for phase, (wall, cpu) in self._seconds.items()]


def measure_once(start: float, table: Path, arguments: list[str]) -> None:
    """Run pytest in this process, and write the seconds of its phases."""
    phases = Phases(start)
    pytest.main(arguments, plugins=[phases])
    table.write_text("\n".join(phases.lines()), encoding="utf-8")


def measure(name: str, options: list[str]) -> None:
    """Run one of the processes and print its tables."""
    with tempfile.TemporaryDirectory() as place:
        folder, table = Path(place), Path(place) / "phases"
        arguments = [
            *("-q", "-s", "-p", "no:cacheprovider", f"--rootdir={folder}", "--llmperf", "--device=cpu"),
            *("--llmperf-measure-only", f"--llmperf-journal={folder / 'journal.jsonl'}", *PROCESSES[name], *options),
            *("--pyargs", "pytest_llmperf.suite.test_quantization"),
        ]
        start = time.monotonic()
        command = [sys.executable, "-X", "importtime", __file__, "--once", str(start), str(table), *arguments]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        ended = subprocess.run(command, check=True, cwd=folder, env=environment, capture_output=True, text=True)
        whole = time.monotonic() - start
        rows = [line.split("\t") for line in table.read_text(encoding="utf-8").splitlines()]
    print(f"\n{name}: {whole:.1f} s (load average {os.getloadavg()[0]:.1f})\n")
    print("| phase | wall, s | processor, s |\n|---|---|---|")
    for phase, wall, cpu in rows:
        print(f"| {phase} | {float(wall):.2f} | {float(cpu):.2f} |")
    print("\n| imports of | s |\n|---|---|")
    for package, seconds in imports(ended.stderr):
        print(f"| {package} | {seconds:.2f} |")


def imports(text: str) -> list[tuple[str, float]]:
    """Seconds of importing each package, the slowest first, by the output of ``-X importtime``."""
    seconds: Counter[str] = Counter()
    for spent_us, package in _IMPORT.findall(text):
        seconds[package] += int(spent_us)
    least = FEW * seconds.total()
    large = [(package, spent / 1e6) for package, spent in seconds.most_common() if spent >= least]
    return [*large, ("others", seconds.total() / 1e6 - sum(spent for _, spent in large))]


def main() -> None:
    """Measure the processes that are named, else all."""
    words = sys.argv[1:]
    if words[:1] == ["--once"]:
        measure_once(float(words[1]), Path(words[2]), words[3:])
        return
    end = words.index("--") if "--" in words else len(words)
    for name in words[:end] or PROCESSES:
        measure(name, words[end + 1 :])


if __name__ == "__main__":
    main()
