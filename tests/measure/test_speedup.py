"""The speedup of one workload over another in a test."""

from __future__ import annotations

import json

import pytest

TWO_WAYS = """
import pytest

@pytest.mark.parametrize("llm", ["fp32"], indirect=True)
def test_ways(llm, llmperf):
    generate, loop = (llmperf.generate(llm, execution=name) for name in ("generate", "loop"))
    llmperf.speedup({ratio})
"""


def test_the_ratio_of_two_workloads_is_recorded_and_gates(project):
    """There are three verdicts; a lower ratio than the baseline's is a regression."""
    project.write(TWO_WAYS.format(ratio="loop, over=generate"))
    project.record(1.0, 1.0, 1.0, 1.0, 1.0)
    result = project.run("--llmperf-catch=20%")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["test * figure * baseline *", "test_ways[[]fp32] *×1.00 *unchanged"])
    slower = project.run("--llmperf-inject=speedup:-50%", "-k", "ways")
    slower.assert_outcomes(failed=1)
    slower.stdout.fnmatch_lines(["speed-up ×0.500 *: ×0.500 < ×1.00 baseline, *"])


def test_a_ratio_over_another_workload_is_another_figure(project):
    """The other workload is part of the ratio's workload."""
    project.write(TWO_WAYS.format(ratio="loop, over=generate"))
    project.record(1.0, 1.0)
    stored = json.loads(project.baseline().read_text())["workloads"].values()
    (ratio,) = (one for one in stored if "speedup_over" in one.get("settings", ()))
    assert ratio["execution"] == "loop"
    project.write(TWO_WAYS.format(ratio="generate, over=loop"))
    result = project.run()
    result.stdout.fnmatch_lines(["not comparable: 1 cell of 1 test (speedup): *speedup_over*"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("llmperf.speedup(one, over=one)", "expected two different workloads with the same primary metric"),
        ("llmperf.speedup(one, over=3)", "speedup: 3: expected a result that llmperf measured in this test"),
    ],
)
def test_what_has_no_ratio_is_refused(project, call, message):
    project.write(f"""
        import pytest

        @pytest.mark.parametrize("llm", ["fp32"], indirect=True)
        def test_one(llm, llmperf):
            one = llmperf.generate(llm)
            {call}
    """)
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"*UsageError: *{message}"])
