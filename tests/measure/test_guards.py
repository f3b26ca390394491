"""A disturbed run decides and confirms nothing and is not recorded, from the command line."""

from __future__ import annotations

import json

import pytest
from perf_project import FAKE_CLOCK, QUICK

from pytest_llmperf.cli import main
from pytest_llmperf.storage.baseline_file import load_baseline

OTHERS = """
import sys

import pytest_llmperf.hardware.cpu_monitor as host

is_fresh = any(word.startswith("--llmperf-journal") for word in sys.argv)
host.others_share = lambda start, end: {share}
"""
BUSY, BUSY_IN_FRESH_PROCESSES = OTHERS.format(share=0.41), OTHERS.format(share="0.41 if is_fresh else 0.0")

LOAD = "--llmperf-guards=load"
WHY = "other processes took 41 % of CPU time, expected 25 % at most (guard load)"
TEST = "test_perf.py::test_decode[[]fp32[]]"


@pytest.fixture
def busy(project):
    """A project with a baseline; other processes take 41 % of the CPU time."""
    project.write()
    project.record(1.0, 1.01, 0.99, 1.0, 1.005)
    project.write(conftest=FAKE_CLOCK + BUSY)
    return project


def test_a_disturbed_test_is_neither_regressed_nor_unchanged(busy):
    """However slow it was; counters are judged all the same."""
    result = busy.run(LOAD, step_ms=5.0)
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [f"invalid: 1 cell of 1 test (tpot): {TEST}: {WHY}", "llmperf: 1 test, 10 of 11 gating cells decided: *"]
    )
    assert busy.run(LOAD, "--llmperf-strict", step_ms=5.0).ret == 1


def test_a_guard_that_is_left_out_only_reads(busy):
    """The conditions are recorded without an objection."""
    result = busy.run("--llmperf-guards=clocks,tenants", "--llmperf-json=out", "--llmperf-gate=tpot", step_ms=5.0)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*TPOT ×* 5.00 ms > 1.00 ms baseline*"])
    (file,) = (busy.path / "out").glob("*.json")
    observation = json.loads(file.read_text())["results"][0]["observation"]
    assert observation["conditions"]["other_processes_cpu_share"] == 0.41
    assert observation["invalid"] == ""


@pytest.mark.parametrize("update", ["--llmperf-update", "--llmperf-update=new"])
def test_a_disturbed_run_is_not_recorded(busy, update):
    """The exit code reports the failure."""
    before = busy.baseline().read_text()
    result = busy.run(LOAD, "--llmperf-measure-only", update)
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [
            f"invalid: {TEST}: {WHY}",
            f"baseline NOT updated: the run was disturbed: {TEST}: {WHY}",
            "failed: disturbed runs are not recorded: repeat on a quiet machine",
        ]
    )
    assert busy.baseline().read_text() == before


def test_recording_ends_with_a_disturbed_run(busy, capfd, monkeypatch):
    """It stops at once, because later runs would be disturbed as well."""
    monkeypatch.chdir(busy.path)
    assert main(["record", "--runs", "2", *QUICK[1:], LOAD]) == 1
    told = capfd.readouterr().out
    assert "baseline NOT updated: the run was disturbed" in told
    assert "llmperf record: run 1 ended with exit code 1; 0 runs recorded before" in told


def test_a_disturbed_fresh_run_confirms_and_clears_nothing(busy):
    """A possible regression stays open."""
    busy.write(conftest=FAKE_CLOCK + BUSY_IN_FRESH_PROCESSES)
    result = busy.run(LOAD, "--llmperf-confirm=1", step_ms=1.5)
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [f"inconclusive: 1 cell of 1 test (tpot): possible regression, *: fresh run 1 of 1 was disturbed: {WHY}"]
    )


def test_runs_that_were_disturbed_are_no_baseline(busy, monkeypatch):
    """A journal merged by hand contains times that are not compared."""
    busy.run(LOAD, "--llmperf-measure-only", "--llmperf-journal=busy.jsonl", step_ms=9.0)
    monkeypatch.chdir(busy.path)
    assert main(["merge", str(busy.baseline()), "busy.jsonl", "-o", str(busy.baseline())]) == 0
    merged = load_baseline(busy.baseline())
    assert (len(merged.runs), merged.observations[-1].invalid) == (6, WHY)
    busy.write()
    result = busy.run("--llmperf-gate=tpot")
    result.stdout.fnmatch_lines(["test_decode[[]fp32[]] * 1.00 ms * 1.00 ms * inconclusive"])


def test_an_unknown_guard_ends_collection(project):
    """The error lists the guards."""
    project.write()
    result = project.run("--llmperf-guards=noise")
    assert result.ret == 4
    result.stderr.fnmatch_lines(["ERROR: --llmperf-guards 'noise': expected all, none, or some of tenants, *"])


def test_guards_of_a_project_stand_in_its_ini_file(busy):
    """The command line overrides it."""
    busy.monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:hypothesispytest")
    busy.pytester.makeini("[pytest]\nllmperf_guards = load\n")
    busy.run().stdout.fnmatch_lines(["invalid: 1 cell of 1 test (tpot): *"])
    busy.run("--llmperf-guards=none").stdout.no_fnmatch_line("invalid: *")
