"""Comparison with a pinned anchor: small regressions that accumulate since a revision fail."""

from __future__ import annotations

import re
import subprocess

import pytest

from pytest_llmperf.cli import main

QUIET_MACHINE = (1.00, 1.005, 0.995, 1.002, 0.998)
SLOWER = tuple(1.25 * step for step in QUIET_MACHINE)
TEST = "test_perf.py::test_decode[fp32]"


def git(folder, *arguments):
    identity = ("-c", "user.name=somebody", "-c", "user.email=somebody@example.org")
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def released(project):
    """A project whose release had a baseline of 1.00 ms and now has one of 1.25 ms; each step to it passed."""
    project.write()
    project.record(*QUIET_MACHINE)
    git(project.path, "init", "-q")
    git(project.path, "add", ".")
    git(project.path, "commit", "-q", "-m", "release")
    git(project.path, "tag", "v1")
    project.record(*SLOWER)
    return project


def test_creep_since_the_release_is_red_although_the_baseline_followed_it(released):
    """The sentence names the anchor; the table's row still compares with the present baseline."""
    plain = released.run(step_ms=1.25)
    assert plain.ret == 0
    result = released.run("--llmperf-anchor=v1", step_ms=1.25)
    assert result.ret == 1
    result.assert_outcomes(failed=1)
    (failed,) = (line for line in result.outlines if line.startswith("FAILED"))
    assert re.search(r" - TPOT ×1.25\d \[.*\] since v1: 1.25 ms > 1.00 ms baseline, limit ×1.05 \(p=", failed)
    result.stdout.fnmatch_lines(["TPOT*since v1: *", "test_decode*1.25 ms*1.25 ms*regressed: tpot since v1"])
    cells = [int(re.search(r"of (\d+) gating cells", run.stdout.str())[1]) for run in (plain, result)]
    assert cells[1] == 2 * cells[0]


def test_what_is_slower_since_the_release_is_confirmed_by_fresh_runs(released):
    """Fresh runs are compared with both baselines; they are slower than the release's alone."""
    result = released.run("--llmperf-anchor=v1", "--llmperf-confirm=1", step_ms=1.25)
    result.assert_outcomes(failed=1)
    (failed,) = (line for line in result.outlines if line.startswith("FAILED"))
    assert " since v1: 1.25 ms > 1.00 ms baseline, " in failed
    result.stdout.fnmatch_lines(["test_decode*1.25 ms*1.25 ms*regressed: tpot since v1"])


def test_a_screen_leaves_creep_open_and_says_who_decides(released):
    """The gate compares with the merge base, where nothing became slower, so it cannot decide."""
    result = released.run("--llmperf-anchor=v1", "--llmperf-screen", step_ms=1.25)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["inconclusive: *tpot since v1*possible regression, not confirmed: run pytest *"])


def test_a_run_as_fast_as_the_release_passes(released):
    """An improvement against the release is not reported, and no command to accept it is offered."""
    released.record(*QUIET_MACHINE)
    result = released.run("--llmperf-anchor=v1", step_ms=1.0)
    assert result.ret == 0
    result.stdout.no_fnmatch_line("*bank it*")
    released.record(*(0.5 * step for step in QUIET_MACHINE))
    result = released.run("--llmperf-anchor=v1", step_ms=0.5)
    assert result.ret == 0
    result.stdout.no_fnmatch_line("*bank it*")


def test_a_step_that_was_accepted_since_is_not_held_against_the_run(released, monkeypatch):
    """The accepted cell is not comparable, which is no pass; the other cells are compared."""
    monkeypatch.chdir(released.path)
    text = re.sub(r'"time": "\d{4}', '"time": "2099', released.baseline().read_text())
    released.baseline().write_text(text)
    assert main(["accept", TEST, "tpot", "--reason", "safer"]) == 0
    result = released.run("--llmperf-anchor=v1", step_ms=1.25)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["not comparable: *(tpot, tpot since v1): an accepted change*"])


def test_a_test_that_the_release_did_not_have_is_new(released):
    """Such a test is reported, not silently skipped."""
    source = (released.path / "test_perf.py").read_text()
    released.write(source.replace("test_decode", "test_young"))
    result = released.run("--llmperf-anchor=v1")
    result.stdout.fnmatch_lines(["new: * cells of 1 test (*tpot since v1*): not in that baseline"])


@pytest.mark.parametrize(
    ("revision", "message"),
    [("v9", "unknown git revision 'v9'"), ("--exec=x", "is not a git revision")],
)
def test_an_anchor_that_is_not_there_is_an_error_before_anything_is_measured(released, revision, message):
    """The exit code is 4 and the message is one line."""
    result = released.run(f"--llmperf-anchor={revision}")
    assert result.ret == 4
    result.stderr.fnmatch_lines([f"ERROR: *{message}*"])


def test_a_release_without_a_baseline_of_this_device_is_told(released):
    """Each gating cell is new against the anchor; the present baseline still decides."""
    git(released.path, "checkout", "-q", "--orphan", "empty")
    git(released.path, "rm", "-q", "-r", "-f", "--cached", ".")
    git(released.path, "commit", "-q", "--allow-empty", "-m", "nothing")
    git(released.path, "tag", "v0")
    result = released.run("--llmperf-anchor=v0", step_ms=1.25)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["new: * cells of 1 test (*tpot since v0*): not in that baseline"])
