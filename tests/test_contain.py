"""A test that runs out of memory, hangs or kills its process is an error of its own, and the others go on."""

from __future__ import annotations

import json

import pytest
from perf_project import FAKE_CLOCK, QUICK

THREE_TESTS = """
import os, time
import pytest
import torch

@pytest.mark.parametrize("llm", ["fp32"], indirect=True)
@pytest.mark.parametrize("number", [1, 2, 3])
def test_decode(llm, llmperf, number, monkeypatch):
    if number == {number}:
        {trouble}
    llmperf.generate(llm)
"""

IN_THE_MODEL = """
import os
import time

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
MEMORY = r"\d+ MiB resident on the host"


def three_tests(trouble="pass", *, number=1):
    return THREE_TESTS.format(trouble=trouble, number=number)


@pytest.mark.parametrize("error", ["torch.OutOfMemoryError('1 GiB is free')", "MemoryError('no room')"])
def test_out_of_memory_is_an_error_of_its_own(project, error):
    """In the test's body and while measuring: the line names phase and memory, and the others go on."""
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
    """Nothing is tried again for the other tests of that model."""
    conftest = """
        import pytest_llmperf.models.load as loading

        def refuse(*args, **kwargs):
            raise MemoryError("no room")

        loading._load = refuse
    """
    project.write(three_tests(), conftest=conftest)
    result = project.pytester.runpytest_subprocess(*QUICK)
    result.assert_outcomes(errors=3)
    result.stdout.re_match_lines([rf"error: .*\(in phase 'load' with {MEMORY} at most\)"])


@pytest.mark.parametrize("hang", ["time.sleep(60)", "while True: pass"])
def test_a_hang_is_interrupted(project, hang):
    """In the phase that hangs; the others go on."""
    project.write(three_tests(), conftest=FAKE_CLOCK + IN_THE_MODEL.format(trouble=hang))
    result = project.run("--llmperf-timeout=2")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.re_match_lines([rf"error: .*timed out after 2 s in phase 'timed requests' with {MEMORY}.*"])


def test_the_baseline_says_what_is_too_long(project):
    """Three times its slowest run, where nobody says otherwise; a marker and 0 do."""
    shortest = "\nimport pytest_llmperf.workplace as workplace\nworkplace.SHORTEST_TIMEOUT_S = 0\n"
    project.write(three_tests(), conftest=FAKE_CLOCK)
    project.record(1.0)
    seen = json.loads(project.baseline().read_text())["observations"]
    limit = 3 * next(one["elapsed_s"] for one in seen if "[1-" in one["test"])
    project.write(three_tests(f"time.sleep({limit + 2})"), conftest=FAKE_CLOCK + shortest)
    result = project.run()
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.re_match_lines([rf"error: .*timed out after {limit:g} s in phase 'test body' .*"])
    project.run("--llmperf-timeout=0").assert_outcomes(passed=3)
