"""``benchmarks/gpu_day.py`` on a CPU: lines, limits and exit codes, with steps that fail on purpose."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_day.py"


def command(out, *arguments):
    return [sys.executable, str(SCRIPT), "--device=cpu", f"--out={out}", *arguments]


def day(out, *arguments):
    return subprocess.run(command(out, *arguments), capture_output=True, text=True, check=False)


def lines(out):
    text = (out / "results.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def found(out):
    return {(line["step"], line["name"]): (line["state"], line["found"]) for line in lines(out)}


def still_running(out):
    """Return the processes of a day's steps, found by the variable with the results file."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("GPU_DAY_RESULTS") == str(out / "results.jsonl"):
                found.append(process)
    return found


def test_what_goes_wrong_is_a_line_and_the_rest_goes_on(tmp_path):
    """A step that hangs is killed with its children; a step without checks fails."""
    done = day(tmp_path, "--only=mishaps", "--seconds=40")  # 12 each, so that a busy machine is no mishap
    assert done.returncode == 1
    states = found(tmp_path)
    assert states["works", "one and one"] == ("ok", "2")
    assert states["works", "seconds since the epoch"][0] == "measured"
    assert states["hangs", "before it hangs"][0] == "ok"
    state, said = states["hangs", "hangs ends by itself"]
    assert (state, said.partition("after")[0]) == ("failed", "killed ")
    assert said.endswith("last line: hanging")
    assert states["fails", "one and one"] == ("failed", "2")
    assert states["raises", "raises ends by itself"] == ("failed", "exit 1: RuntimeError: on purpose")
    assert states["is_silent", "is_silent ends by itself"] == ("failed", "no check was made")
    assert not still_running(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.txt", "results.jsonl", "table.md"]
    assert "===== mishaps/hangs: exit None" in (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert done.stdout.endswith("7 lines: 2 ok, 4 failed, 0 skipped, 1 measured.\n")
    table = (tmp_path / "table.md").read_text(encoding="utf-8").partition("\n\n")[0]
    assert table in done.stdout


def test_what_needs_cuda_is_skipped_and_a_stage_that_runs_again_replaces_its_lines(tmp_path):
    """Skipped steps are neither ok nor failed; stages that did not run again keep their lines."""
    for _ in range(2):
        done = day(tmp_path, "--only=processes")
        assert done.returncode == 0, done.stdout
        assert [(line["found"], line["state"]) for line in lines(tmp_path)][-1] == ("needs CUDA", "skipped")
    assert len(lines(tmp_path)) == 2
    assert "1 lines: 0 ok, 0 failed, 1 skipped, 0 measured." in done.stdout
    assert day(tmp_path, "--only=mishaps", "--seconds=0").returncode == 0
    assert found(tmp_path)["works", "works"] == ("skipped", "no time was left")
    assert "6 lines: 0 ok, 0 failed, 6 skipped, 0 measured." in (tmp_path / "table.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("signal", ["kill", "terminate"])
def test_a_day_that_is_cut_off_keeps_its_lines(tmp_path, signal):
    """The running step's lines are kept too, and no process is left behind."""
    with subprocess.Popen(command(tmp_path, "--only=mishaps"), stdout=subprocess.DEVNULL) as process:
        hanging = tmp_path / "mishaps-hangs.running"
        deadline = time.monotonic() + 60
        while not (hanging.exists() and "hanging" in hanging.read_text()) and time.monotonic() < deadline:
            time.sleep(0.05)
        getattr(process, signal)()
    states = found(tmp_path)
    assert states["works", "one and one"] == ("ok", "2")
    assert states["hangs", "before it hangs"][0] == "ok"
    assert process.returncode == {"kill": -9, "terminate": 128 + 15}[signal]
    deadline = time.monotonic() + 20
    while (left := still_running(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left


def test_an_unknown_stage_is_refused(tmp_path):
    """The exit code is that of a wrong command line."""
    done = day(tmp_path, "--only=processes,nonsense")
    assert done.returncode == 2
    assert "no stage nonsense" in done.stderr


@pytest.fixture
def budget(monkeypatch):
    """A budget of 100 seconds with a clock that stands still."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    from gpu.runner import Budget

    monkeypatch.setattr("gpu.runner.time.monotonic", lambda: 0.0)
    return Budget(100.0)


@pytest.mark.parametrize(("wanted", "of", "limit"), [(10, 60, 25), (10, 100, 15), (10, 200, 7.5), (10, 10, 100)])
def test_a_limit_leaves_the_others_their_time(budget, wanted, of, limit):
    """The limit is 1.5 times the step's share, and at most the time left."""
    assert budget.limit_s(wanted, of=of) == limit
