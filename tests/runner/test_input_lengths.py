"""``--llmperf-input-tokens`` with several lengths, in runs of the real command."""

from __future__ import annotations

import json
import re

import pytest

SUITE = ("--pyargs", "pytest_llmperf.suite", "--llmperf-quantization=fp32", "--llmperf-batch-sizes=1")
LENGTHS = "--llmperf-input-tokens=4,8,16"


def measured(project):
    entries = [json.loads(path.read_text()) for path in (project.path / "cells").glob("*.json")]
    return {entry["test"].partition("::")[2]: entry["results"][0]["workload"] for entry in entries}


def test_several_lengths_are_an_axis_of_the_suite(project):
    """Each is a test of its own; the summary and the page show what context costs."""
    project.write("", conftest=project_clock())
    result = project.run(*SUITE, LENGTHS, "--llmperf-measure-only", "--llmperf-json=cells", "--llmperf-report=r.html")
    assert result.ret == 0, result.outlines
    found = measured(project)
    assert {test: one["input_tokens"] for test, one in found.items()} == {
        f"test_generate[fp32-b1-in{length}-generate]": length for length in (4, 8, 16)
    }
    costs = ", ".join(f"{metric} 1.00 ms + 0*s per 1000 input tokens*" for metric in ("TPOT", "TTFT"))
    result.stdout.fnmatch_lines([f"context: test_generate: *, generate, sdpa, fp32, batch 1, 4 to 16 in: {costs}"])
    page = (project.path / "r.html").read_text()
    charts = json.loads(re.search(r'<script type="application/json" id="charts">(.*?)</script>', page, re.DOTALL)[1])
    assert {"Context: TPOT", "Context: TTFT"} <= {chart["title"] for chart in charts}


def test_one_length_keeps_the_ids(project):
    """Baselines that exist go on."""
    project.write("", conftest=project_clock())
    result = project.run(*SUITE, "--llmperf-input-tokens=8", "--llmperf-measure-only", "--llmperf-json=cells")
    assert {test: one["input_tokens"] for test, one in measured(project).items()} == {
        "test_generate[fp32-b1-generate]": 8
    }
    assert "context:" not in result.stdout.str()


def test_the_ini_file_names_lengths(project):
    """Like every other setting."""
    project.write("")
    project.pytester.makeini("[pytest]\nllmperf_input_tokens = 16, 32, 16\n")
    from perf_project import QUICK

    quick = [word for word in QUICK if "input-tokens" not in word]
    result = project.pytester.runpytest_inprocess(*quick, *SUITE, "--collect-only", "-q")
    result.stdout.fnmatch_lines(["*test_generate[[]fp32-b1-in16-generate]", "*test_generate[[]fp32-b1-in32-generate]"])


def test_a_test_that_sets_no_length_is_refused_in_one_line(project):
    """The suite's axis is none of a user's test; one that sets its length, or words, is measured."""
    project.write("""
        import pytest

        pytestmark = pytest.mark.parametrize("llm", ["fp32"], indirect=True)

        def test_unset(llm, llmperf): llmperf.generate(llm)
        def test_set(llm, llmperf): llmperf.generate(llm, input_tokens=8)
        def test_served(llm, llmperf): llmperf.serve(llm, scheduler="naive", requests=1, repeats=1)
    """)
    result = project.run(LENGTHS, "--llmperf-measure-only")
    line = (
        "*UsageError: --llmperf-input-tokens 4,8,16: several lengths are for the ready-made suite, and this test sets "
        "none: give one length, or pass input_tokens= in the test"
    )
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines([line, line])


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--llmperf-input-tokens=4,0"], "--llmperf-input-tokens '0': expected a whole number of at least 1"),
        (["--llmperf-input-tokens=4,long"], "--llmperf-input-tokens 'long': expected a whole number of at least 1"),
        (
            [LENGTHS, "--llmperf-prompt=chat"],
            "--llmperf-input-tokens 4,8,16 with a prompt that has its own length: leave out one",
        ),
    ],
)
def test_what_is_no_list_of_lengths(project, arguments, line):
    """One line before anything is measured."""
    project.write()
    result = project.run(*arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {line}"])


def test_a_length_beyond_the_model_fails_its_test_alone(project):
    """It is an error of one line, not a skip: nobody would notice a cell that was never measured."""
    project.write("", conftest=project_clock())
    result = project.run(*SUITE, "--llmperf-input-tokens=4,100000", "--llmperf-measure-only")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        ["*100000 input and 4 output tokens exceed the model's limit of * positions: use fewer"]
    )


def project_clock():
    from perf_project import FAKE_CLOCK

    return FAKE_CLOCK
