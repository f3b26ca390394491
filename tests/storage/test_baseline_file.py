"""Baseline files: round trips, atomic writes, and merges that do not depend on order."""

from __future__ import annotations

import json
import subprocess
import threading
from functools import reduce

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.errors import BaselineError
from pytest_llmperf.storage import baseline_file
from pytest_llmperf.storage import merge as merge_module
from pytest_llmperf.storage.baseline_file import dump_baseline, load_baseline, update_baseline
from pytest_llmperf.storage.merge import merge, only_new_cells, trim
from pytest_llmperf.storage.schema import Baseline, CellRun, Epoch, Observation, Run, Warmup, Workload

WORKLOAD = Workload(
    engine="transformers", model="synthetic:tiny", revision="r", quantization="nf4", dtype="bfloat16",
    attention="sdpa", execution="loop", batch_size=1, input_tokens=4, output_tokens=4, sampling="greedy",
    prompt_sha256="0",
)  # fmt: skip


def one_run(number: int, *, session: int = 0, value: float = 1.0) -> Baseline:
    run = f"run {number:03}"
    return Baseline(
        device_key="cpu-test",
        runs=[
            Run(run_id=run, session_id=f"session {session}", time=f"2026-01-01T00:{number:02}:00+00:00", commit=None,
                dirty=None, environment={"torch": "2"})
        ],
        workloads={WORKLOAD.hash: WORKLOAD},
        observations=[
            Observation(run=run, test="t::a", workload=WORKLOAD.hash, clock="fake", requests=1, tokens_produced=4,
                        attention_requested=None, warmup=Warmup(requests=0, steady=False, drift=None))
        ],
        cells=[
            CellRun(test="t::a", workload=WORKLOAD.hash, metric="tpot_ms", run=run, value=value, count=3, mean_log=0.1,
                    mad_log=0.01),
            CellRun(test="t::a", workload=WORKLOAD.hash, metric="weights_bytes", run=run, value=2**40),
            CellRun(test="t::a", workload=WORKLOAD.hash, metric="token_digest", run=run, value="5e1f"),
            CellRun(test="t::a", workload=WORKLOAD.hash, metric="load_peak_allocated_bytes", run=run, value=None,
                    reason="not here"),
        ],
    )  # fmt: skip


def union(numbers) -> Baseline:
    merged = one_run(next(iter(numbers)))
    for number in numbers:
        merged = merge(merged, one_run(number))
    return merged


def test_what_is_written_is_read_back(tmp_path):
    """Every value keeps its type."""
    written = update_baseline(tmp_path / "b.json", lambda _old: one_run(1))
    read = load_baseline(tmp_path / "b.json")
    assert dump_baseline(read) == dump_baseline(written)
    assert {cell.metric: cell.value for cell in read.cells} == {
        "tpot_ms": 1.0, "weights_bytes": 2**40, "token_digest": "5e1f", "load_peak_allocated_bytes": None,
    }  # fmt: skip


def test_a_file_has_one_record_a_line(tmp_path):
    """One record per line makes diffs readable and lets branches merge."""
    text = dump_baseline(union([1, 2]))
    assert sum('"metric": "tpot_ms"' in line for line in text.splitlines()) == 2
    assert all(len(line) < 1000 for line in text.splitlines())


@given(st.lists(st.integers(0, 15), min_size=1, max_size=6), st.lists(st.integers(0, 15), min_size=1, max_size=6))
def test_merging_is_a_set_union(first, second):
    """The merge is commutative and idempotent."""
    one, two = union(first), union(second)
    both = dump_baseline(merge(one, two))
    assert both == dump_baseline(merge(two, one)) == dump_baseline(merge(merge(one, two), one))
    assert {run.run_id for run in merge(one, two).runs} == {f"run {number:03}" for number in (*first, *second)}


def test_two_different_records_of_one_run_do_not_merge():
    """A conflict is an error; no side wins silently."""
    with pytest.raises(BaselineError, match="two different records"):
        merge(one_run(1), one_run(1, value=2.0))


def test_the_window_keeps_a_crowd_until_it_is_full():
    """Five runs of one session stay until the window is full; then crowded sessions lose their oldest runs first."""
    crowd = one_run(0)
    for number in range(1, 5):
        crowd = merge(crowd, one_run(number))
    assert trim(crowd) is crowd
    for number in range(5, 8):
        crowd = merge(crowd, one_run(number, session=number))
    kept = [run.run_id for run in trim(crowd, runs=5).runs]
    assert kept == ["run 003", "run 004", "run 005", "run 006", "run 007"]
    assert [run.run_id for run in trim(crowd, runs=4).runs] == ["run 004", "run 005", "run 006", "run 007"]
    assert {cell.run for cell in trim(crowd, runs=4).cells} == {run.run_id for run in trim(crowd, runs=4).runs}


def test_each_test_has_a_window_of_its_own():
    """Recording one test again does not remove runs of the others."""
    crowd = union(range(5))
    for number in range(5, 12):
        again = one_run(number, session=number)
        again = again.model_copy(
            update={
                "cells": [cell.model_copy(update={"test": "t::b"}) for cell in again.cells],
                "observations": [row.model_copy(update={"test": "t::b"}) for row in again.observations],
            }
        )
        crowd = merge(crowd, again)
    kept = trim(crowd, runs=5)
    assert {cell.run for cell in kept.cells if cell.test == "t::a"} == {f"run {number:03}" for number in range(5)}
    assert {cell.run for cell in kept.cells if cell.test == "t::b"} == {f"run {number:03}" for number in range(7, 12)}
    assert Baseline.model_validate(kept.model_dump()) == kept


def test_the_same_step_accepted_on_two_branches_merges():
    """Both reasons are kept."""
    steps = [
        Epoch(test="t::a", metric="tpot_ms", time="2026-01-01T00:01:00+00:00", commit=None, reason=reason)
        for reason in ("one", "two")
    ]
    one, two = (one_run(1).model_copy(update={"epochs": [step]}) for step in steps)
    assert merge(one, two).epochs == steps
    assert dump_baseline(merge(one, two)) == dump_baseline(merge(merge(two, one), one))


def test_only_new_cells_leave_known_ones_alone():
    """Cells that the baseline holds get no further runs."""
    assert only_new_cells(one_run(1), one_run(2)).cells == []


@pytest.mark.parametrize(
    "failure", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "ctrl-c"]
)
def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch, failure):
    """A baseline is never half-written, and no temporary file is left."""
    path = tmp_path / "b.json"
    update_baseline(path, lambda _old: one_run(1))
    before = path.read_text()

    def fail(_handle: int) -> None:
        raise failure

    monkeypatch.setattr(baseline_file.os, "fsync", fail)
    with pytest.raises((BaselineError, KeyboardInterrupt)):
        update_baseline(path, lambda _old: one_run(2))
    assert path.read_text() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == [".locks", "b.json"]


def test_git_sees_the_baseline_and_no_lock(tmp_path):
    """Adding the folder to git adds the baselines alone."""
    update_baseline(tmp_path / "b.json", lambda _old: one_run(1))
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    seen = subprocess.run(["git", "status", "-s"], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert seen.split() == ["??", "b.json"]


def test_updates_at_once_are_all_kept(tmp_path):
    """The lock makes read, change and replace one atomic step."""
    path = tmp_path / "b.json"

    def add(number: int) -> None:
        update_baseline(path, lambda old: one_run(number) if old is None else merge(old, one_run(number)))

    threads = [threading.Thread(target=add, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(load_baseline(path).runs) == 8


def test_duplicates_and_dangling_references_are_refused(tmp_path):
    """Errors of a manual merge are found on reading."""
    document = json.loads(dump_baseline(one_run(1)))
    for change, message in (
        (lambda d: d["cells"].append(d["cells"][0]), "occurs twice"),
        (lambda d: d["runs"].clear(), "not among the file's runs"),
        (lambda d: d["workloads"].clear(), "not among the file's workloads"),
        (lambda d: d["cells"][1].update(value=None), "a value of null needs a reason"),
        (lambda d: d["cells"][0].update(value=True), "value"),
    ):
        broken = json.loads(json.dumps(document))
        change(broken)
        (tmp_path / "b.json").write_text(json.dumps(broken))
        with pytest.raises(BaselineError, match=message) as caught:
            load_baseline(tmp_path / "b.json")
        assert "\n" not in str(caught.value)


def test_the_committed_json_schema_is_the_codes(request):
    """``llmperf schema > docs/baseline.schema.json`` updates it; real files validate against it."""
    import jsonschema

    committed = json.loads((request.config.rootpath / "docs" / "baseline.schema.json").read_text())
    assert committed == Baseline.model_json_schema()
    jsonschema.validate(json.loads(dump_baseline(one_run(1))), committed)


def in_environment(number: int, *, cells: slice = slice(None), **environment: str) -> Baseline:
    """Return one run of another environment; ``cells`` selects its metrics."""
    run = one_run(number, session=number)
    return run.model_copy(
        update={
            "runs": [run.runs[0].model_copy(update={"environment": {"torch": "2", **environment}})],
            "cells": run.cells[cells],
        }
    )


def merged(*parts: Baseline) -> Baseline:
    return reduce(merge, parts)


def test_runs_of_another_version_push_out_none(monkeypatch):
    """Each environment has a window of its own; the oldest environments share one."""
    old = [in_environment(number, torch="1") for number in range(3)]
    new = [in_environment(number) for number in range(3, 9)]
    kept = [run.run_id for run in trim(merged(*old, *new), runs=3).runs]
    assert kept == [f"run {number:03}" for number in (0, 1, 2, 6, 7, 8)]
    monkeypatch.setattr(merge_module, "ENVIRONMENTS", 1)
    older = [in_environment(number, torch=f"0.{number}") for number in range(10, 15)]
    kept = [run.run_id for run in trim(merged(*old, *older), runs=3).runs]
    assert kept == ["run 011", "run 012", "run 013", "run 014"]


WEIGHTS = slice(1, 2)


def test_counts_of_many_machines_have_one_window():
    """The processor is no part of a counted figure's environment, and is of a time's."""
    machines = [{"cpu_model": f"processor {number}"} for number in range(6)]
    counted = merged(*(in_environment(n, cells=WEIGHTS, **machine) for n, machine in enumerate(machines)))
    assert [run.run_id for run in trim(counted, runs=2).runs] == ["run 004", "run 005"]
    timed = merged(*(in_environment(n, **machine) for n, machine in enumerate(machines)))
    assert trim(timed, runs=2) is timed


@given(
    st.lists(st.tuples(st.integers(0, 30), st.sampled_from("abc")), min_size=1, max_size=20, unique_by=lambda p: p[0]),
    st.integers(1, 4),
)
def test_every_environment_keeps_its_latest_runs(runs, most):
    """The window of an environment is what it would be if the file held no other."""
    whole = trim(merged(*(in_environment(number, torch=torch) for number, torch in runs)), runs=most)
    for torch in {torch for _, torch in runs}:
        alone = trim(merged(*(in_environment(n, torch=t) for n, t in runs if t == torch)), runs=most)
        ours = {run.run_id for run in whole.runs if run.environment["torch"] == torch}
        assert ours == {run.run_id for run in alone.runs}
