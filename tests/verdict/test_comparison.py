"""Selection of the baseline runs that a cell is compared with."""

from __future__ import annotations

import pytest

from pytest_llmperf.metrics import Limit
from pytest_llmperf.storage.schema import (
    Baseline,
    CellRun,
    Epoch,
    Observation,
    Run,
    TestResult,
    Warmup,
    Workload,
)
from pytest_llmperf.verdict.comparison import Comparison
from pytest_llmperf.verdict.model import Outcome

TEST = "tests/test_perf.py::test_decode[nf4]"
ENVIRONMENT = {"torch": "2.13", "host": "here"}


def workload(**changes) -> Workload:
    fields = {
        "engine": "transformers", "model": "m", "revision": "r", "quantization": "nf4", "dtype": "bfloat16",
        "attention": "sdpa", "execution": "loop", "batch_size": 1, "input_tokens": 4, "output_tokens": 4,
        "sampling": "greedy", "prompt_sha256": "0",
    }  # fmt: skip
    return Workload(**fields | changes)


def cell(run: str, value: float | None, *, metric: str = "operators_per_token", of: Workload | None = None) -> CellRun:
    reason = "" if value is not None else "not here"
    return CellRun(test=TEST, workload=(of or workload()).hash, metric=metric, run=run, value=value, reason=reason)


def baseline(*values: float, epochs: list[Epoch] | None = None, **environment: str) -> Baseline:
    runs = [
        Run(run_id=f"run {day}", session_id=f"session {day}", time=f"2026-01-{day:02}", commit=None, dirty=None,
            environment={**ENVIRONMENT, **environment})
        for day in range(1, len(values) + 1)
    ]  # fmt: skip
    return Baseline(
        device_key="cpu",
        runs=runs,
        workloads={workload().hash: workload()},
        cells=[cell(run.run_id, value) for run, value in zip(runs, values, strict=True)],
        epochs=epochs or [],
    )


def result(value: float | None, **changes) -> TestResult:
    ran = workload(**changes)
    return TestResult(
        workload=ran,
        observation=Observation(
            run="now", test=TEST, workload=ran.hash, clock="fake", requests=1, tokens_produced=4,
            attention_requested=None, warmup=Warmup(requests=0, steady=False, drift=None),
        ),
        cells=[cell("now", value, of=ran)],
    )  # fmt: skip


def verdict(stored: Baseline | None, now: TestResult, **environment: str):
    comparison = Comparison(stored, {**ENVIRONMENT, **environment})
    (found,) = comparison.verdicts(now, Limit.of)
    return found


def test_the_window_is_all_comparable_runs_in_order():
    """The window is ordered oldest first; the worst run is the limit."""
    found = verdict(baseline(466.0, 467.0, 465.0), result(467.0))
    assert [sample.run_id for sample in found.cell.window] == ["run 1", "run 2", "run 3"]


def test_after_an_epoch_only_later_runs_count():
    """An epoch of one metric resets that cell and no other."""
    step = Epoch(test=TEST, metric="operators_per_token", time="2026-01-02", commit=None, reason="fused")
    assert verdict(baseline(475.0, 475.0, 467.0, epochs=[step]), result(475.0)).outcome is Outcome.REGRESSED
    other = step.model_copy(update={"metric": "weights_bytes"})
    assert verdict(baseline(475.0, 475.0, 475.0, epochs=[other]), result(475.0)).outcome is Outcome.UNCHANGED
    last = step.model_copy(update={"time": "2026-01-03"})
    found = verdict(baseline(475.0, 475.0, 467.0, epochs=[last]), result(475.0))
    assert found.outcome is Outcome.NOT_COMPARABLE
    assert "accepted change" in found.reason


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"revision": "s"}, "revision: r -> s"),
        ({"dtype": "float16"}, "dtype: bfloat16 -> float16"),
        ({"attention": "eager"}, "attention: sdpa -> eager"),
        ({"batch_size": 8, "output_tokens": 9}, "batch_size: 1 -> 8, output_tokens: 4 -> 9"),
    ],
)
def test_another_workload_is_not_comparable_and_told_in_what(changes, words):
    """The workload's difference is reported, whatever the figures are."""
    for value in (1.0, 1e6):
        found = verdict(baseline(467.0), result(value, **changes))
        assert (found.outcome, found.reason) == (Outcome.NOT_COMPARABLE, f"workload {words}")


def test_a_blocking_difference_is_not_comparable_and_a_noted_one_is():
    """A difference in torch's version blocks; one in the host does not."""
    assert verdict(baseline(467.0), result(999.0), torch="3").reason == "environment torch: 2.13 -> 3"
    assert verdict(baseline(467.0), result(999.0), host="there").outcome is Outcome.REGRESSED


def test_a_cell_that_is_no_longer_measured_is_missing():
    """A cell of the baseline without a value in this run is missing, with the reason."""
    found = verdict(baseline(467.0), result(None))
    assert (found.outcome, found.reason) == (Outcome.MISSING, "not here")


def test_without_a_baseline_everything_is_new():
    """A test that is not in the baseline is new as well."""
    assert verdict(None, result(1.0)).outcome is Outcome.NEW
    other = baseline(467.0).model_copy(update={"cells": []})
    assert verdict(other, result(1.0)).outcome is Outcome.NEW


def test_missing_tests_are_those_that_the_run_would_have_found():
    """Tests of files that were not collected are not missing."""
    comparison = Comparison(baseline(467.0), ENVIRONMENT)
    assert comparison.missing({"tests/test_perf.py::test_other"}, lambda _test: True) == [TEST]
    assert comparison.missing({"tests/test_else.py::test_other"}, lambda _test: False) == []
    assert comparison.missing({TEST}, lambda _test: True) == []
