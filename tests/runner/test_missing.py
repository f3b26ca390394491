"""A test of the baseline is missing only if this run would have collected it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from perf_project import FAKE_CLOCK

TESTS = """
import pytest


@pytest.mark.parametrize("llm", ["fp32"], indirect=True)
@pytest.mark.parametrize("batch", [1, 2])
def test_decode(llm, llmperf, batch):
    llmperf.generate(llm, batch_size=batch)
"""
ONE = TESTS.replace("[1, 2]", "[1]")
GONE = "test_perf.py::test_decode[2-fp32]"
NO_PERF_TEST = "def test_other(): pass"


@pytest.fixture
def recorded(project):
    """A project whose baseline has two tests of one file."""
    project.write(TESTS)
    project.record(1.0)
    return project


def told(result):
    return any(line.startswith("missing: ") for line in result.outlines)


@pytest.mark.parametrize(
    "arguments",
    [
        ("-k", "1-fp32"),
        ("-k", "nothing"),
        ("-m", "slow"),
        ("--deselect", "test_perf.py::test_decode[2-fp32]"),
        ("test_perf.py::test_decode[1-fp32]",),
        ("--ignore", "test_perf.py"),
        ("--ignore-glob", "*_perf.py"),
        ("-o", "python_files=check_*.py"),
    ],
    ids=" ".join,
)
def test_a_run_of_some_tests_does_not_miss_the_others(recorded, arguments):
    """The deselected tests exist, whatever deselected them."""
    result = recorded.run(*arguments, "--llmperf-fail-on=missing")
    assert not told(result)
    assert result.ret in (0, pytest.ExitCode.NO_TESTS_COLLECTED)


@pytest.mark.parametrize("option", ["--lf", "--sw"])
def test_a_run_of_what_failed_does_not_miss_the_others(recorded, option):
    """``--last-failed`` removes tests before any plugin sees them."""
    failing = TESTS.replace("    llmperf.generate", "    assert batch == 1\n    llmperf.generate")
    recorded.write(failing)
    assert recorded.run("--sw" if option == "--sw" else "-q").ret != 0
    recorded.write(TESTS)
    result = recorded.run(option, "--llmperf-strict", "-v")
    assert not told(result)
    assert "test_decode[1-fp32] PASSED" not in result.stdout.str()


DESELECTS = """
import pytest


@pytest.hookimpl({order})
def pytest_collection_modifyitems(config, items):
    {before}config.hook.pytest_deselected(items=items[1:])
    del items[1:]
"""


@pytest.mark.parametrize(
    ("order", "before"), [("tryfirst=True", ""), ("trylast=True", ""), ("wrapper=True, tryfirst=True", "yield\n    ")]
)
def test_a_plugin_that_takes_tests_out_is_heard(recorded, order, before):
    """It may deselect tests before or after our hook runs."""
    recorded.write(TESTS, conftest=FAKE_CLOCK + DESELECTS.format(order=order, before=before))
    (recorded.path / "test_perf.py").write_text(TESTS.replace("def test_decode", "def test_renamed"))
    assert not told(recorded.run())


IGNORES = 'collect_ignore = ["test_perf.py"]'
SKIPS = "import pytest\npytest.skip('no', allow_module_level=True)"


BAD_CLASS = """
import pytest


class TestA:
    @pytest.mark.parametrize("x", 5)
    def test_a(self, x):
        pass
"""
UNREADABLE = {"skipped": SKIPS, "import": "import nothing_like_it", "syntax": "def test_a(:", "class": BAD_CLASS}


@pytest.mark.parametrize("source", UNREADABLE.values(), ids=UNREADABLE)
def test_a_file_that_could_not_be_looked_through_misses_nothing(recorded, source):
    """A file that fails to import may still contain its tests."""
    recorded.write(source)
    (recorded.path / "test_more.py").write_text(ONE)
    assert not told(recorded.run("--continue-on-collection-errors"))


def test_a_file_that_a_conftest_ignores_misses_nothing(recorded):
    recorded.write(TESTS, conftest=FAKE_CLOCK + IGNORES)
    (recorded.path / "test_more.py").write_text(ONE)
    assert not told(recorded.run())


@pytest.mark.parametrize("arguments", [(), ("test_perf.py",), (".",), ("--ff",), ("--nf",), ("-n1",), ("-k", "decode")])
def test_a_whole_run_misses_a_test_that_is_gone(recorded, arguments):
    """Its file was collected without it."""
    recorded.write(ONE)
    result = recorded.run(*arguments, "--llmperf-fail-on=missing")
    result.stdout.fnmatch_lines([f"missing: 1 test of the baseline*{GONE.replace('[', '[[]')}*llmperf prune *"])
    assert result.ret == 1


@pytest.mark.parametrize("workers", [(), ("-n1",)], ids=["plain", "xdist"])
def test_the_last_perf_test_of_a_project_is_missed_too(recorded, workers):
    """The exit code is that of a run without tests, or of missing tests if ``--llmperf-fail-on`` has them."""
    recorded.write(NO_PERF_TEST)
    result = recorded.run(*workers)
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    line = f"missing: 2 tests of the baseline*llmperf prune *--device-key {recorded.baseline().stem}"
    result.stdout.fnmatch_lines([line, "llmperf: 0 tests, *Nothing was verified."])
    strict = recorded.run("--llmperf-strict", "--llmperf-verdicts=verdicts.json", *workers)
    assert strict.ret == 1
    verdicts = json.loads((recorded.path / "verdicts.json").read_text())
    assert (verdicts["exit_code"], verdicts["failed"], len(verdicts["missing"])) == (1, True, 2)


def test_the_last_file_of_a_project_is_missed_too(recorded):
    (recorded.path / "test_perf.py").unlink()
    assert told(recorded.run())


def test_a_run_without_perf_tests_and_without_a_baseline_imports_no_torch(pytester):
    """There is nothing to compare."""
    pytester.makepyfile(NO_PERF_TEST)
    pytester.makeconftest("def pytest_unconfigure():\n    import sys\n    print('TORCH', 'torch' in sys.modules)")
    command = [sys.executable, "-m", "pytest", "--llmperf", "-p", "no:benchmark", "-s"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    env["PLAIN_PYTHON"] = "1"  # a fork has imported torch
    found = subprocess.run(command, cwd=pytester.path, env=env, capture_output=True, text=True, check=False)
    assert found.returncode == pytest.ExitCode.NO_TESTS_COLLECTED
    assert "TORCH False" in found.stdout


BY_OPTIONS = """
def test_decode(llm, llmperf):
    llmperf.generate(llm)
"""


def test_what_an_option_of_ours_leaves_out_this_time_is_not_missing(project):
    """The function exists; other options would give it the parameters of the baseline."""
    project.write(BY_OPTIONS)
    assert project.run("--llmperf-quantization=fp32,bf16", "--llmperf-update").ret == 0
    assert not told(project.run("--llmperf-quantization=bf16"))
    project.write(BY_OPTIONS.replace("test_decode", "test_renamed"))
    project.run("--llmperf-quantization=bf16").stdout.fnmatch_lines(["missing: 2 tests *"])
