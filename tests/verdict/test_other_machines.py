"""Counted figures are decided by baselines of other machines; times are not."""

from __future__ import annotations

import json
import subprocess

import pytest
from perf_project import FAKE_CLOCK

from pytest_llmperf.cli import main
from pytest_llmperf.verdict.verdict_file import read_verdicts

FAKE_MACHINE = """
import json
import os

from pytest_llmperf.measure.bench import Bench

real = Bench.environment
Bench.environment = lambda bench: real(bench) | json.loads(os.environ["MACHINE"])
"""

THERE = {
    "device_name": "Intel Xeon", "cpu_model": "Intel Xeon", "cpu_count": 64, "torch_threads": 32, "host": "there",
    "kernel": "4.0", "driver": "570.1",
}  # fmt: skip
ANOTHER_TORCH = THERE | {"torch": "1.0"}

TEST = """
import os

import pytest
import torch


def add(operators):
    for _ in range(operators):
        torch.ones(1)


@pytest.mark.parametrize("llm", ["fp32"{more}], indirect=True)
def test_decode(llm, llmperf):
    more = llm.model.register_forward_pre_hook(lambda *_: add(int(os.environ["MORE"])))
    llmperf.generate(llm, batch_size=2)
    more.remove()
"""
DECODE = "test_perf.py::test_decode[fp32]"
OPERATORS = "operators_per_token"
COUNTED = {
    OPERATORS, "flops_per_token", "moved_bytes_per_token", "prefill_operators", "prefill_flops", "prefill_moved_bytes",
    "weights_bytes", "kv_cache_bytes",
}  # fmt: skip


class Machines:
    """A project that is run on several machines; ``more`` is the number of operators that a change adds."""

    def __init__(self, project, more: str = ""):
        self.project = project
        self.path = project.path
        self.baselines = project.path / "baselines"
        project.write(TEST.replace("{more}", more), conftest=FAKE_CLOCK + FAKE_MACHINE)
        project.monkeypatch.chdir(project.path)

    def run(self, *arguments, machine=None, more=0):
        self.project.monkeypatch.setenv("MACHINE", json.dumps(machine or {}))
        self.project.monkeypatch.setenv("MORE", str(more))
        return self.project.run("--llmperf-verdicts=verdicts.json", *arguments)

    def record(self, machine=None, **more):
        result = self.run("--llmperf-measure-only", "--llmperf-update", machine=machine, **more)
        assert result.ret == 0, result.outlines

    def outcomes(self, test=DECODE):
        found = next(one for one in read_verdicts(self.path / "verdicts.json").tests if one.test == test)
        return {cell.metric: cell.outcome.value for cell in found.cells if cell.counts}

    def counted(self, test=DECODE):
        return {outcome for metric, outcome in self.outcomes(test).items() if metric in COUNTED}

    def file(self, key):
        return json.loads((self.baselines / f"{key}.json").read_text())


@pytest.fixture
def machines(project):
    return Machines(project)


@pytest.mark.parametrize("width", [60, 80, 160])
def test_another_machines_baseline_decides_what_is_counted_and_no_time(machines, width):
    """Processor, cores, driver and host differ: times and peaks are not comparable, and the reason is told."""
    machines.record(THERE)
    machines.project.monkeypatch.setenv("COLUMNS", str(width))
    result = machines.run()
    assert result.ret == 0
    found = machines.outcomes()
    assert {metric for metric, outcome in found.items() if outcome == "unchanged"} == COUNTED
    assert {outcome for metric, outcome in found.items() if metric not in COUNTED} == {"not_comparable"}
    result.stdout.fnmatch_lines([
        "not comparable: 3 cells of 1 test (*, tpot): environment device_name: Intel Xeon -> *, cpu_count: 64 -> *",
        "counted work: 8 of 8 cells decided: 8 unchanged",
        "times and peaks: 0 of 3 cells decided: 3 not comparable",
        "llmperf: 1 test, 8 of 11 gating cells decided: 8 unchanged, 3 not comparable",
    ])  # fmt: skip
    result.stdout.no_fnmatch_line("*Nothing was verified*")
    assert all(len(line) <= 60 for line in result.outlines if line.startswith(("counted work", "times and peaks")))


def test_an_added_operator_is_red_against_another_machines_baseline(machines):
    """No run of this machine was ever recorded."""
    machines.record(THERE)
    result = machines.run(more=1)
    assert result.ret == 1
    assert machines.outcomes()[OPERATORS] == "regressed"
    assert any("operators / token ×1.00" in line for line in result.outlines if line.startswith("FAILED"))


def test_another_version_of_torch_decides_nothing(machines):
    """Nothing was verified, and each kind of cell names what differed for it."""
    machines.record(ANOTHER_TORCH)
    result = machines.run()
    assert set(machines.outcomes().values()) == {"not_comparable"}
    result.stdout.fnmatch_lines(["not comparable: * tpot): environment device_name: Intel Xeon -> *"])
    result.stdout.fnmatch_lines(
        ["not comparable: * (*kv_cache, *operators_per_token, *weights): environment torch: 1.0 *"]
    )
    result.stdout.fnmatch_lines(["*Nothing was verified.*"])
    result.stdout.no_fnmatch_line("counted work: *")


def test_two_versions_of_torch_side_by_side_decide_each_their_own(machines):
    """Each run is compared with the counts of its version, in one file of another machine."""
    machines.record(THERE, more=0)
    machines.record(ANOTHER_TORCH, more=5)
    assert len(machines.file("cpu-intel-xeon-64c")["runs"]) == 2
    old = {"torch": "1.0"}
    assert [machines.run(machine=now, more=more).ret for now, more in ((None, 0), (old, 5), (None, 5), (old, 6))] == [
        0, 0, 1, 1,
    ]  # fmt: skip
    machines.run(machine=old, more=0)
    assert machines.outcomes()[OPERATORS] == "improved"


def test_the_instruction_set_blocks_where_a_library_chooses_kernels_by_it(project):
    """The library bitsandbytes does, on CPUs; torch dispatches dense operators alike."""
    machines = Machines(project, more=', "nf4"')
    machines.record(THERE | {"cpu_capability": "AVX512 BF16"})
    result = machines.run(machine={"cpu_capability": "AVX2"})
    assert machines.counted() == {"unchanged"}
    assert machines.counted("test_perf.py::test_decode[nf4]") == {"not_comparable"}
    result.stdout.fnmatch_lines(["not comparable: *operators*: environment cpu_capability: AVX512 BF16 -> AVX2"])


def test_another_kind_of_device_decides_and_explains_nothing(machines):
    """The baseline of a GPU is none of a CPU's."""
    machines.record(THERE)
    path = machines.baselines / "cpu-intel-xeon-64c.json"
    text = path.read_text().replace('"device_type": "cpu"', '"device_type": "cuda"')
    (machines.baselines / "h200.json").write_text(
        text.replace('"device_key": "cpu-intel-xeon-64c"', '"device_key": "h200"')
    )
    path.unlink()
    machines.run()
    assert set(machines.outcomes().values()) == {"new"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: len(text) // 2], "other.json: line *: not valid JSON*Restore it from version control"),
        (lambda text: text.replace('"schema_version": 1', '"schema_version": 9'), "other.json: *9*"),
        (lambda text: text, "other.json: device_key: expected 'other', found 'cpu-intel-xeon-64c'. Rename the file*"),
    ],
    ids=["truncated", "future", "renamed"],
)
def test_a_broken_file_of_another_device_is_an_error_before_anything_is_measured(machines, change, message):
    """Its counted runs would decide, so it must not be left out in silence."""
    machines.record(THERE)
    machines.record()
    path = machines.baselines / "cpu-intel-xeon-64c.json"
    (machines.baselines / "other.json").write_text(change(path.read_text()))
    result = machines.run()
    assert result.ret == 4
    result.stderr.fnmatch_lines([f"ERROR: *{message}"])


def test_an_accepted_change_of_a_counted_metric_counts_wherever_it_is_stored(machines, capsys):
    """The epoch is in the other machine's file, and later than the runs of every file."""
    machines.record()
    machines.record(THERE)
    assert machines.run(more=1).ret == 1
    (own,) = (path.stem for path in machines.baselines.glob("*.json") if path.stem != "cpu-intel-xeon-64c")
    words = ["accept", DECODE, "operators_per_token", "--reason", "a check", "--device-key", own]
    assert main(words) == 0
    assert "cpu-intel-xeon-64c.json" not in capsys.readouterr().out.splitlines()[-1]
    machines.run(machine=THERE, more=1).stdout.fnmatch_lines(["not comparable: *operators*an accepted change: *"])
    later = {"time": "2999-01-01T00:00:00+00:00"}
    text = machines.file(own)
    (machines.baselines / f"{own}.json").write_text(json.dumps(text | {"runs": [run | later for run in text["runs"]]}))
    assert main([*words[:-1], "cpu-intel-xeon-64c"]) == 0
    assert machines.file("cpu-intel-xeon-64c")["epochs"][0]["time"] == later["time"]


def test_a_counted_change_is_accepted_in_every_file_that_has_it(machines, capsys):
    """The answer is clear for a counted metric, and for all metrics if one file only has times."""
    machines.record(THERE)
    machines.run("--llmperf-counted", "--llmperf-update", machine=THERE)
    assert sorted(path.stem for path in machines.baselines.glob("*.json")) == ["counted-cpu", "cpu-intel-xeon-64c"]
    assert main(["accept", "test_decode*", "operators_per_token", "--reason", "x"]) == 0
    assert [len(machines.file(key)["epochs"]) for key in ("counted-cpu", "cpu-intel-xeon-64c")] == [1, 1]
    assert main(["accept", "test_decode*", "--reason", "x"]) == 0
    assert [len(machines.file(key)["epochs"]) > 2 for key in ("counted-cpu", "cpu-intel-xeon-64c")] == [True, True]
    machines.record()
    assert main(["accept", "test_decode*", "weights", "--reason", "y"]) == 0
    capsys.readouterr()
    assert main(["accept", "test_decode*", "tpot", "--reason", "x"]) == 4
    assert "baselines of 2 devices: choose one with --device-key: " in capsys.readouterr().err


def test_a_test_is_pruned_from_every_file_and_a_run_from_its_own(machines, capsys):
    """A session that is in two files is not clear."""
    machines.record()
    machines.run("--llmperf-counted", "--llmperf-update", "--llmperf-measure-only")
    (run,) = machines.file("counted-cpu")["runs"]
    assert main(["prune", "--run", run["run_id"], "--dry-run"]) == 0
    assert capsys.readouterr().out.count("would remove 1 of 1 runs") == 1
    assert main(["prune", "--session", run["session_id"]]) == 4
    assert "choose one with --device-key" in capsys.readouterr().err
    assert main(["prune", "test_decode*", "--dry-run"]) == 0
    assert capsys.readouterr().out.count("1 of 1 tests") == 2


def test_commands_read_a_folder_with_a_counted_file(machines, capsys, tmp_path):
    """Show, history, merge and export."""
    machines.record()
    machines.run("--llmperf-counted", "--llmperf-update", "--llmperf-measure-only")
    machines.run("--llmperf-counted", "--llmperf-update", "--llmperf-measure-only", machine={"torch": "9.0"})
    assert main(["show"]) == 0
    out = capsys.readouterr().out
    assert "counted-cpu.json: counted-cpu, 2 runs" in out
    assert "not shown: 1 run of other environments: torch: " in out
    assert main(["history"]) == 0
    assert main(["export", "baselines", str(tmp_path / "runs.csv")]) == 0
    journal = max((machines.path / ".llmperf" / "runs").glob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns)
    assert main(["merge", "baselines/counted-cpu.json", str(journal), "-o", "merged.json"]) == 0
    assert "merged.json: 2 runs, " in capsys.readouterr().out


def test_a_pull_request_cannot_excuse_itself_by_another_machines_file(machines):
    """All files are read from the revision, and the run says which ones differ."""
    machines.record(THERE)
    for words in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "one"]):
        identity = ("-c", "user.name=somebody", "-c", "user.email=somebody@example.org")
        subprocess.run(["git", *identity, *words], cwd=machines.path, check=True)
    (machines.baselines / "cpu-intel-xeon-64c.json").unlink()
    machines.record(THERE, more=1)
    assert machines.run(more=1).ret == 0
    result = machines.run("--llmperf-baseline-ref=main", more=1)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["baseline: read from main; cpu-intel-xeon-64c.json in the working tree differs"])
    result = machines.run("--llmperf-anchor=main", more=1)
    assert result.ret == 1
    assert any("operators / token ×1.00" in line and "since main" in line for line in result.outlines)
