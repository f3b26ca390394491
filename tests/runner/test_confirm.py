"""Possible regressions are measured again in fresh processes before their tests may fail."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from perf_project import FAKE_CLOCK, QUICK

from pytest_llmperf.errors import BaselineError
from pytest_llmperf.stats.holm import holm_family_sizes
from pytest_llmperf.storage.baseline_file import load_baseline
from pytest_llmperf.system.pytest_process import without_outputs

QUIET_MACHINE = (1.0, 1.01, 0.99, 1.0, 1.005)

IN_FRESH_PROCESSES = """
import sys

if any(word.startswith("--llmperf-journal") for word in sys.argv):
    {statement}
"""

TWO_TESTS = """
import pytest

@pytest.mark.parametrize("llm", ["fp32"], indirect=True)
@pytest.mark.parametrize("batch_size", [1, 2])
def test_decode(llm, llmperf, batch_size):
    llmperf.generate(llm, batch_size=batch_size)
"""

SLOW_AT_BATCH_2 = """
import pytest_llmperf.runner.fixtures as fixtures

real = fixtures.LlmPerf.generate


def slower(self, llm, *, batch_size):
    os.environ["STEP_MS"] = "1.5" if batch_size == 2 else "1"
    return real(self, llm, batch_size=batch_size)


fixtures.LlmPerf.generate = slower
"""


@pytest.fixture
def recorded(project):
    """A project whose baseline has a step of 1 ms."""
    project.write(TWO_TESTS)
    project.record(*QUIET_MACHINE)
    return project


def junit_outcomes(path):
    return re.findall(r"<(failure|error|skipped)\b", path.read_text())


@pytest.mark.parametrize("workers", [(), ("-n1",)], ids=["plain", "xdist"])
def test_a_regression_that_fresh_runs_confirm_fails_once(recorded, workers):
    """Terminal, JUnit and exit code show one outcome per test; the sentence has all runs, the summary the cost."""
    result = recorded.run("--llmperf-confirm=2", "--junitxml=out.xml", *workers, step_ms=1.5)
    assert result.ret == 1
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        ["TPOT ×1.* [[]*[]]: 1.50 ms > 1.00 ms baseline, *; runs now: 1.50 ms, 1.50 ms, 1.50 ms)"]
    )
    result.stdout.fnmatch_lines(["confirmation: 2 tests measured again in fresh processes, * s"])
    assert junit_outcomes(recorded.path / "out.xml") == ["failure", "failure"]
    if not workers:
        result.stdout.fnmatch_lines(["llmperf: measuring 2 possible regressions again: fresh run 2 of 2"])


def test_a_slow_first_run_that_fresh_runs_clear_passes(recorded):
    """One slow process fails no test."""
    calm = IN_FRESH_PROCESSES.format(statement="__import__('os').environ['STEP_MS'] = '1'")
    recorded.write(TWO_TESTS, conftest=calm + FAKE_CLOCK)
    result = recorded.run("--llmperf-confirm=1", "--junitxml=out.xml", step_ms=1.5)
    assert result.ret == 0
    result.assert_outcomes(passed=2)
    assert "regressed" not in result.stdout.str()
    assert junit_outcomes(recorded.path / "out.xml") == []


def test_only_suspects_are_measured_again(recorded):
    """A test without a possible regression costs no fresh run."""
    recorded.write(TWO_TESTS, conftest=FAKE_CLOCK + SLOW_AT_BATCH_2)
    result = recorded.run("--llmperf-confirm=1")
    result.assert_outcomes(passed=1, failed=1)
    (journal,) = (recorded.path / ".llmperf" / "confirm").glob("*/1.jsonl")
    tests = {cell.test for cell in load_baseline(journal).cells}
    assert tests == {"test_perf.py::test_decode[2-fp32]"}


def test_a_fresh_run_that_fails_is_an_error_and_not_a_pass(recorded):
    """The regression is neither confirmed nor cleared: the test fails and names the log."""
    crash = IN_FRESH_PROCESSES.format(statement="raise RuntimeError('no device')")
    recorded.write(TWO_TESTS, conftest=crash + FAKE_CLOCK)
    result = recorded.run("--llmperf-confirm=1", step_ms=1.5)
    assert result.ret == 1
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        ["possible regression, not confirmed: fresh run 1 of 1 did not measure it: *no device*1.log*"]
    )


def test_a_suspect_whose_teardown_fails_is_confirmed_too(recorded):
    """The regression and the teardown's error are both reported."""
    teardown = "\n\n@pytest.fixture(autouse=True)\ndef broken():\n    yield\n    raise RuntimeError('left open')\n"
    recorded.write(TWO_TESTS, conftest=FAKE_CLOCK + "import pytest" + teardown)
    result = recorded.run("--llmperf-confirm=1", "-k", "1-fp32", step_ms=1.5)
    result.assert_outcomes(failed=1, errors=1, deselected=1)
    result.stdout.fnmatch_lines(
        ["TPOT ×1.* [[]*[]]: 1.50 ms > 1.00 ms baseline, *; runs now: 1.50 ms, 1.50 ms)", "*left open"]
    )


def test_fresh_runs_that_cannot_be_made_are_an_error(recorded):
    """A checkout that is not writable does not make a possible regression pass."""
    (recorded.path / ".llmperf").mkdir(exist_ok=True)
    (recorded.path / ".llmperf" / "confirm").write_text("a file where the folder should be")
    result = recorded.run("--llmperf-confirm=1", step_ms=1.5)
    assert result.ret == 1
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["possible regression, not confirmed: cannot start fresh runs: *"])


def test_a_run_that_ends_early_reports_what_it_held_as_undecided(recorded):
    """The held tests are inconclusive, and the interruption sets the exit code."""
    recorded.write(TWO_TESTS + "\n\ndef test_last(llmperf):\n    raise KeyboardInterrupt\n")
    recorded.monkeypatch.setenv("STEP_MS", "1.5")
    result = recorded.pytester.runpytest_subprocess(*QUICK, "--llmperf-confirm=1")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["inconclusive: 2 cells of 2 tests (tpot): possible regression, *: the run ended*"])


def test_injected_numbers_are_injected_in_fresh_runs_too(recorded):
    """An injected regression is confirmed like a real one, and its journals are rejected as baselines."""
    result = recorded.run("--llmperf-confirm=1", "--llmperf-inject=tpot:+50%")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["TPOT ×1.*: 1.50 ms*runs now: 1.50 ms, 1.50 ms) [[]injected tpot:+50%[]]"])
    (journal,) = (recorded.path / ".llmperf" / "confirm").glob("*/1.jsonl")
    with pytest.raises(BaselineError, match="injected regressions"):
        load_baseline(journal)


def test_a_replica_keeps_what_selects_and_drops_what_writes():
    """A subprocess does not overwrite the parent's reports."""
    given = ["tests/perf", "-k", "nf4", "--junitxml=a.xml", "-n", "1", "--llmperf-update", "--cov=src", "-x",
             "--device", "cpu", "--engine=mine", "--html", "a.html", "-n1"]  # fmt: skip
    assert without_outputs(given) == ["tests/perf", "-k", "nf4", "-x", "--device", "cpu", "--engine=mine"]


def test_holm_steps_down():
    """The smallest p-value is tested against the whole family, each next one against one fewer, until one fails."""
    assert holm_family_sizes([0.003, 0.0001, 0.002], size=4, alpha=0.01) == [2, 4, 3]
    assert holm_family_sizes([0.5, 0.0001, 0.02], size=4, alpha=0.01) == [3, 4, 3]
    assert holm_family_sizes([], size=1, alpha=0.01) == []


@given(p_values=st.lists(st.floats(0, 1), max_size=8), extra=st.integers(0, 5))
def test_holm_is_never_laxer_than_one_test_and_never_stricter_than_bonferroni(p_values, extra):
    """Each size is between 1 and the family's size."""
    size = len(p_values) + extra
    assert all(1 <= step <= max(size, 1) for step in holm_family_sizes(p_values, size=max(size, 1), alpha=0.01))
