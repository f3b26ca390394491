"""Among a device's processes, those of the run are not tenants, and any other is.

NVML is faked: every process that creates a clock has a context until it ends, as on CUDA. The processes are real.
"""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest
from perf_project import QUICK

from pytest_llmperf.system import run_processes

CONTEXTS = """
import atexit
import os
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest_llmperf.measure.bench as bench
import pytest_llmperf.measure.guards as guards
from pytest_llmperf.hardware.clock import HostClock
from pytest_llmperf.hardware.gpu_monitor import GpuConditions, other_processes
from pytest_llmperf.measure.progress import Progress
from pytest_llmperf.metrics import Figure

CONTEXTS = Path(__file__).with_name("contexts")
CONTEXTS.mkdir(exist_ok=True)
SHIFT = int(os.environ.get("PID_SHIFT", "0"))


class SteppingClock(HostClock):
    now = 0

    def stamp(self):
        self.now += float(os.environ.get("STEP_MS", "1"))
        return self.now

    def elapsed_ms(self, start, end):
        return end - start


def clock_for(device):
    context = CONTEXTS / str(os.getpid())
    context.touch()
    atexit.register(context.unlink, missing_ok=True)
    return SteppingClock()


class Nvml:
    NVMLError = RuntimeError

    def nvmlDeviceGetComputeRunningProcesses(self, _handle):
        pids = [int(path.name) for path in CONTEXTS.iterdir()]
        return [SimpleNamespace(pid=pid + SHIFT) for pid in pids]

    def nvmlDeviceGetMPSComputeRunningProcesses(self, _handle):
        return []


class Gpu:
    def begin(self):
        pass

    look = end = begin

    def conditions(self):
        return GpuConditions(other_processes_on_device=other_processes(Nvml(), "handle"))

    def energy(self, _tokens):
        return Figure("energy_mj_per_token", None, "made up")


@contextmanager
def watch(device, progress):
    found = guards.Watch(device, Gpu())
    progress.watchers.insert(0, found)
    try:
        yield found
        found.close()
    finally:
        progress.watchers.remove(found)


bench.clock_for, bench.watch = clock_for, watch
"""
QUIET_MACHINE = (1.0, 1.01, 0.99, 1.0, 1.005)
GUARDED = [*(word for word in QUICK if "confirm" not in word), "--llmperf-guards=tenants", "-p", "no:hypothesispytest"]
OF_THE_HOST = {"PID_SHIFT": "4000000"}
"""Process ids of another namespace, as a driver may report in a container: none matches the run's."""


@pytest.fixture
def run(project, monkeypatch):
    """Return a function that runs pytest in a process of its own, in a project whose baseline has a step of 1 ms."""
    project.write()
    project.record(*QUIET_MACHINE)
    project.write(conftest=CONTEXTS)
    monkeypatch.setenv("PLAIN_PYTHON", "1")  # the processes of a run are found by their parents
    for name in ("PYTEST_ADDOPTS", run_processes.RUN_VARIABLE, run_processes.USERS_VARIABLE):
        monkeypatch.delenv(name, raising=False)

    def start(*arguments, **variables):
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *GUARDED, *arguments],
            cwd=project.path, env=os.environ | variables, capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout

    return start


@pytest.mark.parametrize("ids", [{}, OF_THE_HOST], ids=["ids", "ids of the host"])
def test_a_slowdown_is_confirmed_beside_the_parent_that_waits(run, ids):
    """The parent keeps its context, and the fresh run sees it."""
    code, said = run("--llmperf-confirm=1", STEP_MS="2", **ids)
    assert code == 1, said
    assert "\nTPOT ×" in said.partition("test_decode[fp32] __")[2], said


def test_a_parent_that_only_waits_has_no_context(run, project):
    """Each model's process is alone on the device."""
    code, said = run("--llmperf-isolate", "--llmperf-confirm=0", STEP_MS="2", **OF_THE_HOST)
    assert code == 1, said
    assert "\nTPOT ×" in said.partition("test_decode[fp32] __")[2], said
    assert list((project.path / "contexts").iterdir()) == []


def test_a_stranger_is_told(run, project):
    """Beside another tenant, a slowdown is not a regression."""
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)  # no process of the run
    try:
        (project.path / "contexts").mkdir()
        (project.path / "contexts" / str(stranger.pid)).touch()
        code, said = run(STEP_MS="2", **OF_THE_HOST)
    finally:
        stranger.communicate(b"\n")
    assert code == 0
    assert "1 other process on cpu (guard tenants)" in said


def test_a_run_is_its_ancestors_and_what_the_outermost_has_started(monkeypatch):
    """A sibling belongs to the run only if the variable names an ancestor, which started both."""
    sibling = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    ask = "from pytest_llmperf.system.run_processes import run_process_ids as ids; print(*ids())"
    try:
        found = {}
        for name, outermost in (("ours", str(os.getpid())), ("another's", str(sibling.pid)), ("none", "no number")):
            monkeypatch.setenv(run_processes.RUN_VARIABLE, outermost)
            child = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
            found[name] = {int(word) for word in child.stdout.split()}
        assert all(os.getpid() in ids and os.getppid() in ids for ids in found.values())
        assert [sibling.pid in found[name] for name in ("ours", "another's", "none")] == [True, False, False]
    finally:
        sibling.communicate(b"\n")


def test_what_cannot_be_asked_leaves_this_process(monkeypatch):
    """A process may end while it is inspected."""

    def ended(*_args):
        raise psutil.NoSuchProcess(1)

    monkeypatch.setattr(run_processes.psutil, "Process", ended)
    assert run_processes.run_process_ids() == {os.getpid()}
