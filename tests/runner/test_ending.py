"""At a run's end, results are written and reported whatever else fails, and the exit code reflects the verdicts."""

from __future__ import annotations

import json

import pytest
from perf_project import DECODE_TEST, FAKE_CLOCK

QUIET_MACHINE = (1.0, 1.01, 0.99, 1.0, 1.005)
VERDICTS = "--llmperf-verdicts=verdicts.json"

NOT_RELEASED = """
import pytest_llmperf.runner.context as workplace


class Broken(workplace.Bench):
    def release(self):
        raise RuntimeError("device lost")


workplace.Bench = Broken
"""


@pytest.fixture
def recorded(project):
    """A project whose baseline has a step of 1 ms."""
    project.write()
    project.record(*QUIET_MACHINE)
    return project


def verdicts(project):
    return json.loads((project.path / "verdicts.json").read_text())


def journal(project):
    """Return the last run's journal."""
    found = (project.path / ".llmperf" / "runs").glob("*.jsonl")
    return max(found, key=lambda path: path.stat().st_mtime_ns).read_text()


@pytest.mark.parametrize("workers", [(), ("-n1",)], ids=["plain", "xdist"])
def test_a_model_that_cannot_be_released_is_told_and_fails_the_run(recorded, workers):
    """All results are stored, and all verdicts are shown."""
    recorded.write(conftest=FAKE_CLOCK + NOT_RELEASED)
    result = recorded.run(VERDICTS, *workers)
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [
            "the model could not be released: RuntimeError: device lost",
            "failed: a file could not be written or a resource not released",
            "llmperf: 1 test, 10 of 11 gating cells decided: 10 unchanged, *",
        ]
    )
    assert "test_decode" in journal(recorded)
    if not workers:
        assert (verdicts(recorded)["failed"], verdicts(recorded)["exit_code"]) == (True, 1)


RAISES = """
import pytest


@pytest.hookimpl({order})
def {hook}:
    raise RuntimeError("theirs")
"""
HOOKS = {
    "sessionfinish": RAISES.format(order="", hook="pytest_sessionfinish()"),
    "first-sessionfinish": RAISES.format(order="tryfirst=True", hook="pytest_sessionfinish()"),
    "last-sessionfinish": RAISES.format(order="trylast=True", hook="pytest_sessionfinish()"),
    "around-sessionfinish": RAISES.format(order="wrapper=True, tryfirst=True", hook="pytest_sessionfinish()")
    + "    yield",
    "summary": RAISES.format(order="tryfirst=True", hook="pytest_terminal_summary()"),
    "report": RAISES.format(order="tryfirst=True", hook="pytest_runtest_logreport(report)").replace(
        "raise", 'if report.when == "call": raise'
    ),
    "finish": RAISES.format(order="", hook="pytest_runtest_logfinish()"),
    "unconfigure": RAISES.format(order="tryfirst=True", hook="pytest_unconfigure()"),
}


@pytest.mark.parametrize("hook", HOOKS.values(), ids=HOOKS)
def test_a_hook_of_another_plugin_that_raises_keeps_nothing_from_being_told(recorded, hook):
    """Summary, verdict file and journal exist, and the summary is printed once."""
    recorded.write(conftest=FAKE_CLOCK + hook)
    result = recorded.run(VERDICTS)
    assert result.ret != 0
    told = [line for line in result.outlines if line.startswith("llmperf: 1 test, 10 of 11 gating cells decided")]
    assert len(told) == 1
    assert [len(one["cells"]) > 0 for one in verdicts(recorded)["tests"]] == [True]
    assert "test_decode" in journal(recorded)


RESETS = """
import pytest


@pytest.hookimpl({order})
def pytest_sessionfinish(session):
    {before}session.exitstatus = 0
"""


@pytest.mark.parametrize(
    ("order", "before"),
    [
        ("tryfirst=True", ""),
        ("trylast=True", ""),
        ("wrapper=True", "yield\n    "),
        ("wrapper=True, tryfirst=True", "yield\n    "),
    ],
)
def test_the_exit_code_follows_from_the_verdicts(recorded, order, before):
    """Neither another plugin nor pytest's count of failures changes it."""
    recorded.write(conftest=FAKE_CLOCK + RESETS.format(order=order, before=before))
    assert recorded.run(step_ms=9.0).ret == 1
    assert recorded.run(step_ms=1.0).ret == 0


FORGIVES = """
import pytest


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item, call):
    report = yield
    report.outcome, report.longrepr = "passed", None
    return report
"""


def test_a_report_that_another_plugin_made_pass_is_a_regression_all_the_same(recorded):
    """The run fails although pytest counts no failure, and the verdict file says so."""
    recorded.write(conftest=FAKE_CLOCK + FORGIVES)
    result = recorded.run(VERDICTS, step_ms=9.0)
    assert result.ret == 1
    assert (verdicts(recorded)["failed"], verdicts(recorded)["exit_code"]) == (True, 1)


FULL = """
import errno

import pytest_llmperf.{module} as module


def full(*_arguments, **_more):
    raise OSError(errno.ENOSPC, "No space left on device")


module.{name} = full
"""
KEPT = "results could not be written: No space left on device"
FULL_DISKS = {
    "journal": ("runner.session", "_next_journal", KEPT),
    "json": ("runner.session", "_write_json", KEPT),
    "baseline": ("runner.session", "update_baseline", "baseline NOT updated: No space left on device"),
    "verdicts": ("runner.session", "write_verdicts", KEPT),
    "report": ("report.html", "write_report", KEPT),
    "profiles": ("runner.profiling", "store_profiles", "operator profiles NOT stored: No space left on device"),
}


@pytest.mark.parametrize("what", FULL_DISKS)
def test_a_disk_that_is_full_is_told_and_all_the_rest_is_written(project, what):
    """Each file is written independently of the others; one that cannot be written fails the run."""
    module, name, line = FULL_DISKS[what]
    project.write(conftest=FAKE_CLOCK + FULL.format(module=module, name=name))
    result = project.run("--llmperf-update", "--llmperf-json=out", VERDICTS, "--llmperf-report=report.html")
    assert result.ret == 1
    result.stdout.fnmatch_lines([line, "failed: *", "llmperf: 1 test, *"])
    written = {
        "journal": (project.path / ".llmperf" / "runs"),
        "json": (project.path / "out"),
        "baseline": (project.path / "baselines"),
        "verdicts": (project.path / "verdicts.json"),
        "report": (project.path / "report.html"),
    }
    there = {name: path.is_file() or any(path.glob("*.json*")) for name, path in written.items()}
    assert there == {name: name != what for name in written}


EXITS = (
    DECODE_TEST
    + """

def test_then(llmperf):
    pytest.exit("enough", returncode=99)
"""
)


def test_a_run_that_a_test_ended_tells_what_it_measured(recorded):
    """The summary is printed although pytest prints none at a custom exit code."""
    recorded.write(EXITS)
    result = recorded.run(VERDICTS, "--llmperf-update")
    assert result.ret == 99
    result.stdout.fnmatch_lines(["baseline NOT updated: the run was interrupted*", "llmperf: 1 test, 10 of 11 *"])
    assert verdicts(recorded)["failed"]
