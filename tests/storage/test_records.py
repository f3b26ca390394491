"""Environments, journals, summaries of samples, and tables of runs."""

from __future__ import annotations

import json
import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_baseline_file import WORKLOAD, one_run, union

from pytest_llmperf import load_runs
from pytest_llmperf.errors import BaselineError, MeasurementError
from pytest_llmperf.metrics import COUNTED, METRICS, Kind
from pytest_llmperf.stats.summary import percentile, summarize
from pytest_llmperf.storage.baseline_file import dump_baseline
from pytest_llmperf.storage.comparability import (
    ASSUMED,
    BLOCKING,
    DENSE,
    FIELDS,
    State,
    Weight,
    blocking,
    compare_environments,
    counted_key,
    depends_on,
)
from pytest_llmperf.storage.dataframe import COLUMNS
from pytest_llmperf.storage.journal import Journal, read_journal
from pytest_llmperf.storage.schema import TestResult
from pytest_llmperf.system.git import head_commit, is_dirty

positive = st.floats(1e-6, 1e6)


@pytest.mark.parametrize("field", [name for name, weight in FIELDS.items() if weight is Weight.BLOCKS])
def test_a_blocking_field_has_three_answers(field):
    """Equal values compare, different ones block, and one that is unknown on one side is shown but does not block."""
    assert compare_environments({field: "a"}, {field: "a"}) == []
    assert [str(found) for found in blocking(compare_environments({field: "a"}, {field: "b"}))] == [f"{field}: a -> b"]
    (lacking,) = compare_environments({field: "a"}, {})
    assert lacking.state is (State.DIFFERS if field in ASSUMED else State.UNKNOWN)
    assert blocking([lacking]) == ([lacking] if field in ASSUMED else [])


def test_a_run_recorded_before_tracing_was_is_taken_for_untraced():
    """A traced run is not compared with it, and an untraced one is."""
    assert compare_environments({}, {"tracing": "none"}) == []
    assert [str(found) for found in blocking(compare_environments({}, {"tracing": "coverage"}))] == [
        "tracing: none -> coverage"
    ]


def test_another_host_is_noted_and_does_not_block():
    """Devices of the same type are compared, and the difference is shown."""
    found = compare_environments({"host": "a"}, {"host": "b"})
    assert [difference.field for difference in found] == ["host"]
    assert blocking(found) == []


def test_what_a_figure_depends_on_is_told_by_its_metric_and_workload():
    """Times depend on all that blocks; counts on versions and the kind of device, where no processor has a say."""
    nf4, dense = WORKLOAD, WORKLOAD.model_copy(update={"quantization": "bf16"})
    lookup = dense.model_copy(update={"execution": "lookup"})
    operators, tpot, syncs = (METRICS[key] for key in ("operators_per_token", "tpot_ms", "syncs_per_token"))
    assert COUNTED < BLOCKING == depends_on(tpot, dense) == depends_on(operators, lookup)
    assert depends_on(operators, nf4) == COUNTED
    assert depends_on(operators, dense) == COUNTED - {"cpu_capability"}
    assert depends_on(syncs, nf4) == COUNTED | {"runtime"}
    assert not {"cpu_model", "cpu_count", "driver", "power_limit_w", "host"} & COUNTED


def test_every_metric_that_another_machine_may_decide_is_exact():
    """A digest of tokens, and what depends on rounding, is not among them."""
    counted = {key for key, metric in METRICS.items() if metric.depends_on is not None}
    assert {METRICS[key].kind for key in counted} == {Kind.EXACT}
    assert {METRICS[key].depends_on - BLOCKING for key in counted} == {frozenset()}
    left_out = {"tokens_per_step", "acceptance_share", "tokens_unlike_loop", "kernel_launches_per_token",
                "decode_peak_allocated_bytes", "token_digest"}  # fmt: skip
    assert not left_out & counted


@pytest.mark.parametrize(
    ("then", "now", "are_builds"),
    [
        ("2.13.0+cpu", "2.13.0", True),
        ("2.13.0+cu126", "2.13.0+cu130", True),
        ("2.13.0+rocm6.4", "2.13.0", False),
        ("2.13.0", "2.13.1", False),
        ("2.13.0+git123", "2.13.0+cpu", False),
    ],
)
def test_two_builds_of_torch_count_alike(then, now, are_builds):
    """Times are never compared between them."""
    found = compare_environments({"torch": then}, {"torch": now})
    assert len(blocking(found)) == 1
    assert (blocking(found, COUNTED) == []) is are_builds
    assert (counted_key({"torch": then}) == counted_key({"torch": now})) is are_builds


def test_the_dense_quantizations_are_those_of_the_models():
    """The storage must not import the models."""
    from pytest_llmperf.models import quantization

    assert set(quantization.DENSE) == DENSE


def journal_of(baseline, path) -> Journal:
    (run,) = baseline.runs
    journal = Journal(path, device_key=baseline.device_key, run=run)
    (workload,) = baseline.workloads.values()
    journal.append(TestResult(workload=workload, observation=baseline.observations[0], cells=baseline.cells))
    return journal


def test_a_journal_reads_as_a_baseline_of_one_run(tmp_path):
    """A crash may truncate the last line; an earlier broken line is an error."""
    run = one_run(1)
    journal = journal_of(run, tmp_path / "runs" / "one.jsonl")
    text = journal.path.read_text()
    assert dump_baseline(read_journal(text)) == dump_baseline(run)
    assert dump_baseline(read_journal(text + '{"workload": {"engi')) == dump_baseline(run)
    with pytest.raises(ValueError, match="line 2: not a test's result"):
        read_journal(text.replace('"cells"', '"sells"') + text.splitlines()[1])
    with pytest.raises(ValueError, match="line 1: not the header"):
        read_journal("")


@given(st.lists(positive, min_size=1, max_size=30))
def test_a_run_is_reduced_to_the_median_of_logs(samples):
    """It equals the median for odd counts and the geometric mean of the middle two for even counts."""
    found = summarize(samples)
    assert math.isclose(found.value, math.exp(statistics.median(map(math.log, samples))))
    assert min(samples) <= found.value * (1 + 1e-9)
    assert found.value <= max(samples) * (1 + 1e-9)
    assert found.mad_log >= 0


@pytest.mark.parametrize("samples", [[], [0.0], [-1.0], [math.nan], [math.inf, 1.0]])
def test_what_is_no_duration_never_becomes_a_figure(samples):
    """Such a sample raises an error."""
    with pytest.raises(MeasurementError):
        summarize(samples)


@given(st.lists(positive, min_size=1, max_size=50), st.integers(0, 100))
def test_percentiles_are_numpys(samples, q):
    """The result equals numpy's default definition, without importing numpy."""
    import numpy as np

    assert math.isclose(percentile(samples, q), float(np.percentile(samples, q)), rel_tol=1e-9)


def test_load_runs_gives_one_row_a_cell_and_run(tmp_path):
    """The columns are the documented ones, with numbers as numbers and texts in their own column."""
    (tmp_path / "a.json").write_text(dump_baseline(union([1, 2])))
    frame = load_runs(tmp_path)
    assert len(frame) == 8
    assert [name for name in frame.columns if not name.startswith("env_")] == list(COLUMNS)
    assert frame.loc[frame["metric"] == "tpot_ms", "value"].tolist() == [1.0, 1.0]
    assert frame.loc[frame["metric"] == "token_digest", "text"].unique().tolist() == ["5e1f"]
    assert str(frame["time"].dtype).startswith("datetime64")
    assert frame["env_torch"].unique().tolist() == ["2"]


def test_load_runs_of_nothing_says_so(tmp_path):
    """An empty folder is an error; a baseline without runs is an empty table."""
    with pytest.raises(BaselineError, match="no baseline under"):
        load_runs(tmp_path)
    (tmp_path / "a.json").write_text(json.dumps({"schema_version": 1, "device_key": "cpu"}))
    assert list(load_runs(tmp_path).columns) == list(COLUMNS)


def test_outside_a_repository_there_is_no_commit(tmp_path):
    """The commit is recorded as unknown, without an error."""
    assert head_commit(tmp_path) is None
    assert is_dirty(tmp_path) is None
