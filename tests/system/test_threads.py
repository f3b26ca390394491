"""Jobs that wait for processes at the same time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from pytest_llmperf.system.pytest_process import run_perf_tests
from pytest_llmperf.system.threads import run_together

SLEEPS = """
import os, time
from pathlib import Path
Path(os.environ["HERE"], f"{os.getpid()}.pid").touch()
time.sleep(600)
"""

INTERRUPTED = """
import os, signal, sys
from functools import partial
from pathlib import Path
from pytest_llmperf.system.pytest_process import run_perf_tests
from pytest_llmperf.system.threads import run_together

folder = Path(sys.argv[1])
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in what it starts in the background
run_together(
    [lambda watch, n=n: run_perf_tests([], folder=folder, log=folder / f"{n}.log", watch=watch) for n in (1, 2)]
)
"""


@pytest.fixture
def sleepers(tmp_path, monkeypatch):
    """A folder whose perf tests never end, each process of which leaves a file with its id."""
    monkeypatch.setenv("HERE", str(tmp_path))
    (tmp_path / "conftest.py").write_text(SLEEPS)
    return tmp_path


def started(folder, count):
    while len(found := list(folder.glob("*.pid"))) < count:
        time.sleep(0.05)
    return [int(path.stem) for path in found]


def wait_until_gone(processes):
    """A fork of the tests ends shortly after the process that stands for it."""
    while any(map(psutil.pid_exists, processes)):
        time.sleep(0.05)


def test_results_come_in_the_order_of_the_jobs():
    """Whichever ends first."""
    assert run_together([lambda _watch: time.sleep(0.05) or 1, lambda _watch: 2]) == [1, 2]


@pytest.mark.parametrize("error", [ValueError("one"), KeyboardInterrupt()])
def test_a_job_that_fails_ends_the_processes_of_the_others(sleepers, error):
    """And its error is the one that is raised."""

    def fails(_watch):
        started(sleepers, 1)
        raise error

    def waits(watch):
        return run_perf_tests([], folder=sleepers, log=sleepers / "log", watch=watch)

    with pytest.raises(type(error)):
        run_together([waits, fails])
    wait_until_gone(started(sleepers, 1))


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGINT")
def test_an_interruption_ends_all_processes(sleepers):
    """Also one that only the waiting process receives."""
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(sleepers)], stderr=subprocess.PIPE, text=True, cwd="/"
    ) as waiting:
        processes = started(sleepers, 2)
        os.kill(waiting.pid, signal.SIGINT)
        _, said = waiting.communicate(timeout=60)
    assert said.rstrip().endswith("KeyboardInterrupt")
    wait_until_gone(processes)
