"""The ``llmperf`` command, as a user types it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from types import SimpleNamespace

import pytest

from pytest_llmperf.cli import ab, main
from pytest_llmperf.measure import doctor
from pytest_llmperf.storage.dataframe import COLUMNS
from pytest_llmperf.system import pytest_process
from pytest_llmperf.verdict.paired import LOOKS


@pytest.fixture
def recorded(project):
    """A project with a baseline of three sessions; its folder is the working directory."""
    project.write()
    project.record(1.00, 1.01, 0.99)
    project.monkeypatch.chdir(project.path)
    return project


def test_show_prints_cells_runs_spread_and_what_the_baseline_can_find(recorded, capsys):
    """One row per gating cell; exact metrics show their limit."""
    assert main(["show"]) == 0
    out = capsys.readouterr().out
    assert "3 runs in 3 sessions" in out
    row = next(line for line in out.splitlines() if " tpot " in line)
    assert "1.00 ms" in row
    assert "1.0 %" in row
    assert row.rstrip().endswith("%")
    assert "> " in next(line for line in out.splitlines() if "operators_per_token" in line)
    assert " ttft " not in out


def test_show_fits_eighty_columns(recorded, capsys, monkeypatch):
    """Each test is named once, above its metrics, which have one line each."""
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["show", "--all"]) == 0
    _, *lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert sum("test_decode" in line for line in lines) == 1
    metrics = [line.split()[0] for line in lines if line.startswith("  ") and not line.startswith("   ")]
    assert len(metrics) == len({*metrics}) > 8


def test_show_all_lists_every_judged_metric(recorded, capsys):
    """``--all`` adds the metrics that do not gate, such as the digest."""
    assert main(["show", "--all", str(recorded.baseline())]) == 0
    out = capsys.readouterr().out
    assert " ttft " in out
    assert " token_digest " in out


def test_merge_joins_two_files_and_kept_runs_in_any_order(recorded, capsys):
    """The result is the union by run id: a run of both files occurs once."""
    recorded.baseline().rename("one.json")
    recorded.run("--llmperf-update", session="another day")
    recorded.baseline().rename("two.json")
    (run,) = json.loads((recorded.path / "two.json").read_text())["runs"]
    journal = recorded.path / ".llmperf" / "runs" / f"{run['run_id']}.jsonl"
    assert main(["merge", "one.json", "two.json", str(journal), "-o", "a.json"]) == 0
    assert main(["merge", str(journal), "two.json", "one.json", "one.json", "-o", "b.json"]) == 0
    assert (recorded.path / "a.json").read_text() == (recorded.path / "b.json").read_text()
    assert capsys.readouterr().out.splitlines()[-1].startswith("b.json: 4 runs, ")


def test_merging_two_devices_is_refused(recorded, capsys):
    """A baseline file holds one device."""
    text = recorded.baseline().read_text()
    (recorded.path / "other.json").write_text(text.replace('"device_key": "', '"device_key": "other-'))
    assert main(["merge", str(recorded.baseline()), "other.json", "-o", "c.json"]) == 4
    assert "two devices" in capsys.readouterr().err
    assert not (recorded.path / "c.json").exists()


def test_export_writes_csv_and_parquet(recorded, capsys):
    """Both have one row per cell and run."""
    import pandas as pd

    assert main(["export", "baselines", "runs.csv"]) == 0
    assert main(["export", "baselines", "runs.parquet"]) == 0
    csv, parquet = pd.read_csv("runs.csv"), pd.read_parquet("runs.parquet")
    assert len(csv) == len(parquet) > 0
    assert list(csv.columns) == list(parquet.columns)
    assert [name for name in csv.columns if not name.startswith("env_")] == list(COLUMNS)
    assert f"{len(csv)} rows" in capsys.readouterr().out


@pytest.mark.usefixtures("_imported")
def test_doctor_says_what_can_be_measured_and_why_not_the_rest(capsys, monkeypatch):
    """One line each: clock, memory, NVML, quantizations, attention, compilation."""
    monkeypatch.setattr(doctor.shutil, "which", lambda name: name)
    monkeypatch.setattr(doctor, "obstacle", lambda device, backend: f"{backend} found no linker for {device}")
    assert main(["doctor", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = {line.split("  ")[0]: line for line in lines}
    assert "perf_counter" in found["clock"]
    assert " no " in found["NVML"]
    assert "only for NVIDIA" in found["NVML"]
    assert all(f"quantization {name}" in found for name in ("bf16", "nf4", "int8-decomp"))
    assert {"bf16", "attention sdpa", "attention flash_attention_2"} <= set(found)
    assert "inductor found no linker for cpu" in found["torch.compile"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "nowhere"], "cannot read baseline nowhere: No such file"),
        (["show"], "no baseline under"),
        (["show", "--bogus"], "unexpected '--bogus'"),
        (["export", "nowhere.json", "out.xlsx"], "expected a name ending in .csv or .parquet"),
        (["record", "--runs", "0"], "--runs 0: expected a whole number"),
        (["doctor", "--device", "tpu"], "unknown device 'tpu'"),
        (["selftest", "--pairs", "0"], "--pairs 0: expected a whole number"),
        (["selftest", "--blocks", "7"], "--blocks 7: expected at least 8: fewer show no change"),
        (["selftest", "--sizes", "5"], "--sizes '5': expected slowdowns above 0"),
        (["selftest", "--budget", "soon"], "--budget 'soon': expected a time"),
        (["selftest", "tests"], "unexpected 'tests'"),
    ],
)
def test_what_the_user_has_to_mend_is_one_line_and_exit_code_4(tmp_path, monkeypatch, capsys, arguments, message):
    """No command prints a traceback."""
    (tmp_path / "baselines").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 4
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_record_runs_fresh_processes_and_appends_each(project):
    """Two processes give two runs of one session and exit code 0; the next run compares with them."""
    project.write()
    options = """
        [pytest]
        llmperf_device = cpu
        llmperf_model = synthetic:tiny
        llmperf_output_tokens = 4
        llmperf_requests = 2
        llmperf_warmup = 0
        llmperf_explain = off
    """
    project.pytester.makeini(options)
    project.monkeypatch.delenv("LLMPERF_SESSION_ID", raising=False)
    result = project.pytester.run(
        sys.executable, "-m", "pytest_llmperf", "record", "--runs", "2", "-q", "-p", "no:benchmark"
    )
    assert result.ret == 0, result.outlines
    stored = json.loads(project.baseline().read_text())
    assert len(stored["runs"]) == 2
    assert len({run["session_id"] for run in stored["runs"]}) == 1


def test_record_stops_at_a_failing_run_and_says_what_was_recorded(project):
    """The exit code is pytest's."""
    project.write("def test_broken(llmperf): assert False")
    result = project.pytester.run(
        sys.executable, "-m", "pytest_llmperf", "record", "--runs", "3", "--llmperf-device=cpu"
    )
    assert result.ret == 1
    result.stdout.fnmatch_lines(["llmperf record: run 1 ended with exit code 1; 0 runs recorded before"])


def test_an_option_that_looks_like_one_of_record_is_passed_on(monkeypatch):
    """``--count`` is pytest-repeat's."""
    seen = []
    ended = SimpleNamespace(exit_code=0)
    monkeypatch.setattr(pytest_process, "run_perf_tests", lambda arguments: seen.extend(arguments) or ended)
    assert main(["record", "--runs=1", "--count=2"]) == 0
    assert "--count=2" in seen
    assert "--llmperf-counted" not in seen


def test_help_teaches_the_first_steps(capsys):
    """Every command and option in the help text exists."""
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    steps = re.findall(r"^  (llmperf|pytest) (.*?)(?:  |$)", out.partition("first steps:")[2], re.MULTILINE)
    assert len(steps) == 7
    commands = set(re.findall(r"^    (\w+)  ", out, re.MULTILINE))
    assert {words.split()[0] for tool, words in steps if tool == "llmperf"} <= commands


def test_a_comparison_may_take_its_last_look():
    """By default; the command line does not import the looks."""
    assert LOOKS[-1] == ab.MOST_BLOCKS


def test_the_shell_completes_commands():
    """As for pytest, argcomplete asks, and reads the answer from file descriptor 8."""
    pytest.importorskip("argcomplete")
    with tempfile.TemporaryFile("w+") as answer:
        asked = {"COMP_LINE": "llmperf acc", "COMP_POINT": "11", "_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "|"}
        tell = f"import os, sys; os.dup2({answer.fileno()}, 8); from pytest_llmperf.cli import main; main()"
        subprocess.run([sys.executable, "-c", tell], env=os.environ | asked, pass_fds=[answer.fileno()], check=True)
        answer.seek(0)
        assert answer.read().strip() == "accept"
