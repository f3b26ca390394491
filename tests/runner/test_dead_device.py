"""A device that dies in a test is reported once; the process runs no other tests, and keeps all earlier results.

The CPU stands for the device: from some moment on, every synchronization raises, as every CUDA call does then.
"""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from perf_project import FAKE_CLOCK

from pytest_llmperf.hardware.dead_device import why_dead
from pytest_llmperf.runner.context import Workplace

DEVICE = """
import pytest
import torch

ERROR = RuntimeError("CUDA error: device-side assert triggered\\nCUDA kernel errors might be reported later")
DEAD = []


def call(device=None):
    if DEAD:
        raise ERROR


torch.cpu.synchronize = torch.cpu.empty_cache = call
torch.cpu.is_initialized = lambda: True  # which torch 2.7 has of other devices only


@pytest.fixture
def kill():
    return lambda: DEAD.append(True)
"""

TESTS = """
import pytest

pytestmark = pytest.mark.parametrize("llm", ["fp32"], indirect=True)


def test_before(llm, llmperf):
    llmperf.generate(llm)


def test_kills(llm, llmperf, kill):
    {kills}


def test_after(llm, llmperf):
    llmperf.generate(llm)


def test_last(llm, llmperf):
    llmperf.generate(llm)
"""
RAISES = """
    def fail(*_):
        kill()
        raise RuntimeError("CUDA error: device-side assert triggered")

    llm.model.register_forward_hook(fail)
    llmperf.generate(llm)
"""
SILENT = """
    llmperf.generate(llm)
    kill()
"""
EXPECTED = """
    kill()
    with pytest.raises(RuntimeError):
        raise RuntimeError("CUDA error: device-side assert triggered")
"""
DIED = "cpu died in test_perf.py::test_kills[[]fp32[]]: RuntimeError: CUDA error: device-side assert triggered"
VERDICTS = "--llmperf-verdicts=verdicts.json"


@pytest.fixture
def dying(project, monkeypatch):
    """A project whose second test kills the device, in the given way."""
    for name in ("synchronize", "empty_cache", "is_initialized"):
        monkeypatch.setattr(torch.cpu, name, getattr(torch.cpu, name, bool), raising=False)

    def write(kills=RAISES):
        project.write(TESTS.format(kills=kills), conftest=FAKE_CLOCK + DEVICE)
        return project

    return write


@pytest.mark.parametrize("kills", [RAISES, SILENT, EXPECTED], ids=["raises", "silent", "expected"])
def test_a_dead_device_is_told_once_and_nothing_more_is_tried(dying, kills):
    """This holds too if the test passed and its kernels failed afterwards."""
    project = dying(kills)
    result = project.run(VERDICTS)
    assert result.ret == 1
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            f"failed: {DIED}; tests not run: 2 (with --llmperf-isolate the run continues in another process)",
            "llmperf: 2 tests, *",
            "!!!*cpu died !!!*",
        ]
    )
    assert "could not be released" not in result.stdout.str()
    written = json.loads((project.path / "verdicts.json").read_text())
    assert (written["exit_code"], written["failed"]) == (1, True)
    assert written["breach"].endswith("tests not run: 2 (with --llmperf-isolate the run continues in another process)")
    (journal,) = (project.path / ".llmperf" / "runs").glob("*.jsonl")
    assert "test_before" in journal.read_text()


def test_whoever_asked_for_the_journal_reads_which_tests_were_not_run(dying):
    """A requested journal, such as that of a gate's process, lists the tests that were not run."""
    project = dying()
    project.run("--llmperf-journal=journal.jsonl", "--llmperf-measure-only")
    notes = [json.loads(line) for line in (project.path / "journal.jsonl").read_text().splitlines()[1:]]
    told = {note["test"]: note["error"] for note in notes if note.get("error")}
    assert [*told] == [f"test_perf.py::test_{name}[fp32]" for name in ("kills", "after", "last")]
    assert told["test_perf.py::test_last[fp32]"].startswith("not run: cpu died in test_perf.py::test_kills[fp32]")


def test_a_worker_tells_that_its_device_died(dying):
    """The exit code is 1, as without xdist."""
    result = dying().run("-n1", VERDICTS)
    assert result.ret == 1
    result.stdout.fnmatch_lines([f"failed: {DIED}; tests not run: 2 (*"])


def test_under_isolation_the_next_process_goes_on(dying):
    """The next subprocess measures the remaining tests."""
    result = dying().run("--llmperf-isolate")
    assert result.ret == 1
    result.assert_outcomes(passed=3, failed=1)
    assert "died" not in "\n".join(line for line in result.outlines if line.startswith("failed:"))


def test_fresh_runs_that_lose_the_device_confirm_nothing(dying):
    """A possible regression becomes an error, which names the cause."""
    project = dying("llmperf.generate(llm)\n    if '--llmperf-journal' in ' '.join(__import__('sys').argv): kill()")
    project.record(1.0, 1.01, 0.99, 1.0, 1.005)
    result = project.run("--llmperf-confirm=1", step_ms=9.0)
    assert result.ret == 1
    told = "*test_after*fresh run 1 of 1 did not measure it: not run: cpu died in test_perf.py::test_kills*"
    result.stdout.fnmatch_lines([told])


class Module:
    """Fakes torch; synchronizing the device raises the given number of times."""

    def __init__(self, *, initialized=True, errors=0):
        self.is_initialized = lambda: initialized
        self.errors = errors

    def synchronize(self, device):
        assert device == "cuda:1"
        self.errors -= 1
        if self.errors >= 0:
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (Module(), ""),
        (Module(errors=1), ""),
        (Module(errors=9), "RuntimeError: CUDA error: an illegal memory access was encountered"),
        (Module(initialized=False, errors=9), ""),
    ],
    ids=["works", "an error that is told once", "every call fails", "not used"],
)
def test_a_device_is_dead_if_every_call_fails(monkeypatch, module, why):
    """A device that this process has not used is not checked, because that would create a context."""
    monkeypatch.setattr(torch, "cuda", module)
    monkeypatch.setattr(torch._C, "_cuda_hasPrimaryContext", lambda index: index == 1, raising=False)
    assert why_dead("cuda:1") == why


def test_a_device_without_a_context_here_is_not_asked(monkeypatch):
    """A server does the work; synchronizing here would create a context."""
    monkeypatch.setattr(torch, "cuda", Module(errors=9))
    monkeypatch.setattr(torch._C, "_cuda_hasPrimaryContext", lambda index: index != 1, raising=False)
    assert why_dead("cuda:1") == ""


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_who_interrupts_does_not_wait_for_the_device(monkeypatch, kind):
    """The device may hang."""
    workplace = SimpleNamespace(_note_death=lambda test: pytest.fail("asked"))
    with pytest.raises(kind), Workplace._noticing_death(workplace, "test"):
        raise kind
