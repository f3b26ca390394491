"""A test that runs out of memory, hangs or kills its process is an error, and the other tests still run."""

from __future__ import annotations

import gc
import json
import re
import sys
import time

import pytest
from perf_project import FAKE_CLOCK, QUICK

from pytest_llmperf import load_runs
from pytest_llmperf.errors import MeasurementError
from pytest_llmperf.measure import timeout
from pytest_llmperf.measure.progress import Progress
from pytest_llmperf.measure.timeout import time_limit

TIME_PASSES = """
import signal
import time


def time_passes():
    "The time limit, if there is one, is reached at once."
    limited = signal.getitimer(signal.ITIMER_REAL)[0] > 0
    if limited:
        signal.setitimer(signal.ITIMER_REAL, 0.01, 1)
    return limited
"""
LONG = "--llmperf-timeout=600"
"""No test reaches it on a busy machine."""

THREE_TESTS = (
    TIME_PASSES
    + """
import os
import pytest
import torch

@pytest.mark.parametrize("llm", ["fp32"], indirect=True)
@pytest.mark.parametrize("number", [1, pytest.param(2, marks=pytest.mark.llmperf(timeout={limit_s})), 3])
def test_decode(llm, llmperf, number, monkeypatch):
    if number == {number}:
        {trouble}
    llmperf.generate(llm)
"""
)

IN_THE_MODEL = (
    TIME_PASSES
    + """
import os

import pytest_llmperf.measure.generation as generation
import torch

real = generation.time_request
asked = []


def time_request(run, clock):
    asked.append(run)
    if len(asked) == 2:
        {trouble}
    return real(run, clock)


generation.time_request = time_request
"""
)
MEMORY = r"[\d.]+ [MG]iB resident on the host"


def three_tests(trouble="pass", *, number=1, limit_s=None):
    """Three tests of one model, of which the second has a time limit and test ``number`` has trouble."""
    return THREE_TESTS.format(trouble=trouble, number=number, limit_s=limit_s)


@pytest.mark.parametrize("error", ["torch.OutOfMemoryError('1 GiB is free')", "MemoryError('no room')"])
def test_out_of_memory_is_an_error_of_its_own(project, error):
    """In the test's body and while measuring: the line names phase and memory, and the other tests run."""
    project.write(three_tests(f"raise {error}"))
    result = project.run()
    result.assert_outcomes(passed=2, failed=1)
    kind = error.partition("(")[0].removeprefix("torch.")
    result.stdout.re_match_lines([rf"error: test_perf\S+: MeasurementError: {kind} in phase 'test body' with {MEMORY}"])
    project.write(three_tests(), conftest=FAKE_CLOCK + IN_THE_MODEL.format(trouble=f"raise {error}"))
    result = project.run()
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.re_match_lines([rf"error: .*: measuring .* {kind} in phase 'timed requests' with {MEMORY}: .*"])


def test_a_model_that_does_not_fit_names_the_memory_that_was_in_use(project):
    """The model's other tests do not load it again."""
    conftest = """
        import pytest_llmperf.models.load as loading

        def refuse(*args, **kwargs):
            raise MemoryError("no room")

        loading._load = refuse
    """
    project.write(three_tests(), conftest=conftest)
    result = project.pytester.runpytest_subprocess(*QUICK)
    result.assert_outcomes(errors=3)
    result.stdout.re_match_lines([rf"error: .*\(peak in phase 'load' with {MEMORY}\)"])


@pytest.mark.parametrize("hang", ["time.sleep(60)", "while True: pass"])
def test_a_hang_is_interrupted(project, hang):
    """The error names the phase that hangs; the other tests run."""
    trouble = f"time_passes()\n        {hang}"
    project.write(three_tests(), conftest=FAKE_CLOCK + IN_THE_MODEL.format(trouble=trouble))
    result = project.run(LONG)
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.re_match_lines([rf"error: .*timed out after 600 s in phase 'timed requests' with {MEMORY}.*"])


def test_a_time_limit_that_is_swallowed_is_told_again(monkeypatch):
    """Python drops an exception raised in a garbage collector's callback, where the signal may arrive."""
    monkeypatch.setattr(timeout, "REMIND_S", 0.05)

    swallowed = []
    monkeypatch.setattr(sys, "unraisablehook", swallowed.append)

    def slow(_phase, _info):
        time.sleep(0.3)

    def hangs():
        with time_limit(0.1, Progress("cpu")):
            gc.collect()
            time.sleep(30)

    gc.callbacks.append(slow)
    try:
        with pytest.raises(MeasurementError, match=r"timed out after 0\.1 s"):
            hangs()
    finally:
        gc.callbacks.remove(slow)
    assert swallowed


def test_the_baseline_says_what_is_too_long(project):
    """The default limit is ten times the baseline's slowest run; a marker overrides it, and 0 disables it."""
    shortest = "\nimport pytest_llmperf.runner.context as workplace\nworkplace.SHORTEST_TIMEOUT_S = 0\n"
    project.write(three_tests(), conftest=FAKE_CLOCK)
    project.record(1.0)
    stored = project.baseline().read_text()
    assert all(one["elapsed_s"] > 0 for one in json.loads(stored)["observations"])
    project.baseline().write_text(re.sub(r'"elapsed_s":\s*[\d.]+', '"elapsed_s": 60', stored))
    project.write(three_tests("time_passes() and time.sleep(60)"), conftest=FAKE_CLOCK + shortest)
    result = project.run()
    result.assert_outcomes(passed=2, failed=1)
    timed_out = [r"error: .*timed out after 600 s in phase 'test body' .*"]
    result.stdout.re_match_lines(timed_out)
    project.run("--llmperf-measure-only").stdout.re_match_lines(timed_out)
    project.run("--llmperf-timeout=0").assert_outcomes(passed=3)


def rows(result):
    """Return the table's first column and verdict of each row."""
    return [line for line in result.outlines if line.startswith("test_decode[")]


@pytest.mark.parametrize("workers", [(), ("-n1",)], ids=["plain", "xdist"])
def test_a_killed_process_takes_no_other_test_along(project, workers):
    """The first of three tests kills its process: an error with phase and memory; the others are measured."""
    project.write(three_tests("os.kill(os.getpid(), 9)"))
    result = project.run("--llmperf-isolate", "--junitxml=out.xml", *workers)
    assert result.ret == 1
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.re_match_lines(
        [rf"error: .*\[1-fp32\]: its process was killed by SIGKILL.* 'test body' with {MEMORY}.*"]
    )
    (journal,) = (project.path / ".llmperf" / "runs").glob("*.jsonl")
    assert set(load_runs(journal)["test"]) == {"test_perf.py::test_decode[2-fp32]", "test_perf.py::test_decode[3-fp32]"}
    assert (project.path / "out.xml").read_text().count("<failure") == 1


MODELS_AND_OUTCOMES = """
import pytest

@pytest.mark.parametrize("llm", ["fp32", "int8"], indirect=True)
@pytest.mark.parametrize("number", [1, 2])
def test_decode(llm, llmperf, number):
    llmperf.generate(llm, batch_size=number)

def test_skips(llmperf):
    pytest.skip("not today")

def test_fails(llmperf):
    print("told before")
    assert 1 == 2

@pytest.mark.xfail(strict=True)
def test_is_known(llmperf):
    assert False
"""


def test_isolation_changes_no_verdict(project):
    """Table, outcomes and baseline equal those of one process; skips and failures appear once, with output."""
    project.write(MODELS_AND_OUTCOMES)
    project.run("--llmperf-measure-only", "--llmperf-update", "-k", "decode")
    plain, isolated = (project.run("-rs", *more, step_ms=1.0) for more in ((), ("--llmperf-isolate",)))
    for result in (plain, isolated):
        result.assert_outcomes(passed=4, failed=1, skipped=1, xfailed=1)
        result.stdout.fnmatch_lines(["*assert 1 == 2", "told before", "SKIPPED*: not today"])
    assert [row.split()[0] for row in rows(plain)] == [row.split()[0] for row in rows(isolated)]
    assert [row.split()[-1] for row in rows(plain)] == [row.split()[-1] for row in rows(isolated)]
    logs = list((project.path / ".llmperf" / "isolate").glob("*/*.log"))
    assert len(logs) == 3


def test_isolated_tests_enter_the_baseline_as_one_run(project):
    """The number of subprocesses does not matter."""
    project.write(three_tests())
    result = project.run("--llmperf-isolate", "--llmperf-update")
    assert result.ret == 0, result.outlines
    found = json.loads(project.baseline().read_text())
    assert len(found["runs"]) == 1
    assert len(found["observations"]) == 3


def test_isolated_tests_that_look_slower_are_confirmed(project):
    """Fresh subprocesses confirm them."""
    project.write(three_tests())
    project.record(1.0, 1.01, 0.99, 1.0, 1.005)
    result = project.run("--llmperf-isolate", "--llmperf-confirm=1", step_ms=1.5)
    result.assert_outcomes(failed=3)
    result.stdout.fnmatch_lines(["TPOT ×1.*: 1.50 ms*runs now: 1.50 ms, 1.50 ms)"])


STUCK = "__import__('signal').pthread_sigmask(0, [14]) or time.sleep(60)"


@pytest.mark.parametrize("hang", ["time.sleep(60)", STUCK], ids=["interruptible", "stuck"])
def test_an_isolated_hang_ends(project, hang):
    """The subprocess's own timer ends it, or its parent does if no signal reaches it."""
    grace = "\nimport pytest_llmperf.runner.isolate as isolate\nisolate.GRACE_S = 1\n"
    project.write(three_tests(hang, number=2, limit_s=1), conftest=FAKE_CLOCK + grace)
    result = project.run("--llmperf-isolate")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.re_match_lines([rf"error: .*\[2-fp32\]: .*timed out after 1 s in phase 'test body' with {MEMORY}.*"])


NEVER = """
import signal
import time

import pytest_llmperf.runner.isolate as isolate

isolate.GRACE_S = 1
isolate.ENDING_S = 3


def never(*_):
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    time.sleep(60)
"""
AN_EVENT = """
class Stuck(FakeClock):
    def synchronize(self):
        if bench.Bench.measured:
            never()


bench.clock_for = lambda device: Stuck()
bench.Bench.measured = 0
real = bench.Bench.measure


def measure(self, *args, **kwargs):
    result = real(self, *args, **kwargs)
    bench.Bench.measured += 1
    return result


bench.Bench.measure = measure
"""


def test_an_isolated_event_that_never_completes_ends(project):
    """The next subprocess runs the remaining tests."""
    project.write(three_tests(limit_s=1), conftest=FAKE_CLOCK + NEVER + AN_EVENT)
    result = project.run("--llmperf-isolate")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.re_match_lines([rf"error: .*\[2-fp32\]: .*timed out after 1 s in phase '.*' with {MEMORY}.*"])


def test_a_process_that_does_not_end_is_killed(project):
    """Its tests have ended, so their results count."""
    hang = "\n\ndef pytest_unconfigure(config):\n    if config.getoption('llmperf_tell'):\n        never()\n"
    project.write(three_tests(), conftest=FAKE_CLOCK + NEVER + hang)
    result = project.run("--llmperf-isolate")
    result.assert_outcomes(passed=3)
    told = "llmperf: killed a process that did not end within 3 s of its last test (see *isolate*1.log)"
    result.stdout.fnmatch_lines([f"*{told}*"])


def test_a_process_that_does_not_start_is_an_error_of_each_test(project):
    """No test passes, and the start is not repeated forever."""
    crash = "import sys\nif any('--llmperf-tell' in word for word in sys.argv):\n    raise RuntimeError('no device')\n"
    project.write(three_tests(), conftest=crash + FAKE_CLOCK)
    result = project.run("--llmperf-isolate")
    result.assert_outcomes(errors=3)
    result.stdout.fnmatch_lines(["error: *its process ended before the test: exit code *no device*"])
