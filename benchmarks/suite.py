"""What the ready-made suite costs on this machine's CPU, by part: where the seconds of each of its modules go.

Each module runs once in a fresh process, with the options of the ini file where this is started. One module alone, with
options of pytest behind it: ``python benchmarks/suite.py serving --llmperf-quantization nf4``. Everything between a
phase's beginning and the next one's counts for it: warm-up is all warm-up requests, ``load`` holds no imports and no
building of synthetic models, which are part of ``setup``.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import pytest

SUITE = "pytest_llmperf.suite"
MODULES = ("test_quantization", "serving", "kernels", "speedup")
START, END = "start and collection", "end"


class Parts:
    """A pytest plugin that adds up how long each phase lasts."""

    def __init__(self, start: float) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._phase, self._since = START, start

    def enter(self, phase: str) -> None:
        """A phase begins, and the one before it ends."""
        now = time.perf_counter()
        self.seconds[self._phase] += now - self._since
        self._phase, self._since = phase, now

    @pytest.hookimpl(trylast=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Listen to the phases of the run."""
        from pytest_llmperf.runner import WORKPLACE

        session.config.stash[WORKPLACE].progress.listener = lambda moment: self.enter(moment.phase)

    def pytest_sessionfinish(self) -> None:
        """The last test has ended."""
        self.enter(END)


def measure_module(module: str, *options: str) -> None:
    """Run one module of the suite in this process and print where its time went."""
    start = time.perf_counter()
    parts = Parts(start)
    with tempfile.TemporaryDirectory() as folder:
        status = pytest.main(
            ["-q", "-p", "no:cacheprovider", "-p", "no:benchmark", f"--rootdir={folder}", "--llmperf", "--device=cpu",
             f"--llmperf-baselines={folder}", *options, "--pyargs", f"{SUITE}.{module}"], plugins=[parts]
        )  # fmt: skip
    parts.enter("")
    whole = time.perf_counter() - start
    print(f"{module}: exit {int(status)}, {whole:.1f} s")
    for phase, seconds in sorted(parts.seconds.items(), key=lambda row: -row[1]):
        print(f"  {phase:22} {seconds:7.1f} s {100 * seconds / whole:4.0f} %")


def main() -> None:
    """Every module in a process of its own, or the one that is named in this process."""
    if sys.argv[1:]:
        measure_module(*sys.argv[1:])
    else:
        for module in MODULES:
            subprocess.run([sys.executable, Path(__file__), module], check=True)


if __name__ == "__main__":
    main()
