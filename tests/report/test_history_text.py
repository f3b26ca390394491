"""Change points as text and plots, from the real command and real files."""

from __future__ import annotations

import random
import shlex
import sys
from datetime import UTC, datetime, timedelta

import pytest

from pytest_llmperf.cli import main
from pytest_llmperf.storage.baseline_file import dump_baseline
from pytest_llmperf.storage.schema import Baseline, CellRun, Epoch, Run, Workload

TEST = "test_perf.py::test_decode[nf4-$<b>]"
WORKLOAD = Workload(
    engine="transformers", model="synthetic:tiny", revision="r", quantization="nf4", dtype="bfloat16",
    attention="sdpa", execution="loop", batch_size=1, input_tokens=4, output_tokens=4, sampling="greedy",
    prompt_sha256="0",
)  # fmt: skip


def day(number: int) -> str:
    return (datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=number)).isoformat(timespec="seconds")


def baseline(figures: list[float], *, epochs: list[Epoch] | None = None) -> Baseline:
    """Return a baseline with two runs a day and one commit a day."""
    runs = [(number, half) for number in range(len(figures)) for half in (0, 1)]
    return Baseline(
        device_key="cpu-test",
        runs=[
            Run(run_id=f"run {number:02} {half}", session_id=f"session {number}", time=day(number),
                commit=f"{number:02}{'c' * 38}", dirty=False, environment={"torch": "2"})
            for number, half in runs
        ],
        workloads={WORKLOAD.hash: WORKLOAD},
        cells=[
            CellRun(test=TEST, workload=WORKLOAD.hash, metric=metric, run=f"run {number:02} {half}", value=value)
            for number, half in runs
            for metric, value in (
                ("tpot_ms", figures[number]), ("weights_bytes", 2**20), ("token_digest", "5e1f"), ("ttft_ms", 1.0),
            )
        ],
        epochs=epochs or [],
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a baseline that has an accepted step of 5 % after ten days, at 1 % noise."""
    noise = random.Random(3)
    figures = [4.0 * (1.05 if number >= 10 else 1.0) * noise.gauss(1.0, 0.01) for number in range(20)]
    step = Epoch(test=TEST, metric="tpot_ms", time=day(9), commit=None, reason="a safer\x1b kernel")
    (tmp_path / "baselines").mkdir()
    (tmp_path / "baselines" / "cpu-test.json").write_text(dump_baseline(baseline(figures, epochs=[step])))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    return tmp_path


def test_a_step_is_told_with_time_commits_levels_and_reason(folder, capsys):
    """The commits suit ``git log``; metrics that do not gate, and digests, are omitted."""
    assert main(["history"]) == 0
    out = capsys.readouterr().out
    (row,) = (line for line in out.splitlines() if " tpot " in line)
    assert f"{TEST}: synthetic:tiny · nf4 · batch 1 · 4 in, 4 out · loop: 40 runs, 20 points" in out
    for word in (
        "2026-01-11 00:00",
        "09cccccc..10cccccc",
        "4.01 ms",
        "4.18 ms",
        "+4.1 %",
        r"a safer\x1b kernel",
    ):
        assert word in row
    assert "  no change: weights\n" in out
    assert main(["history", "--all"]) == 0
    assert "  no change: ttft, weights\n" in capsys.readouterr().out
    assert main(["history", "test_decode*", "ttft"]) == 0
    assert "tpot" not in capsys.readouterr().out


def test_lines_are_as_long_as_the_terminal_is_wide(folder, capsys, monkeypatch):
    """In a pipe, the width comes from the environment."""
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["history"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert max(map(len, [*lines[:-1], *first.split()])) <= 60
    assert [line.startswith("    ") for line in lines if "kernel" in line] == [True]


@pytest.mark.parametrize(
    ("before", "after", "epochs", "told"),
    [(4.0, 5.0, 0, True), (4.0, 5.0, 1, False), (5.0, 4.0, 0, False)],
    ids=["worse", "accepted", "better"],
)
def test_a_change_for_the_worse_is_told_with_the_command_that_finds_the_commit(  # noqa: PLR0913, PLR0917  # a case
    folder, capsys, monkeypatch, before, after, epochs, told
):
    """It is one line however narrow the terminal is, and can be pasted into a shell."""
    monkeypatch.setenv("COLUMNS", "60")
    step = Epoch(test=TEST, metric="tpot_ms", time=day(9), commit=None, reason="known")
    figures = [(before if number < 10 else after) * (1 + number % 3 / 1000) for number in range(20)]
    (folder / "baselines" / "cpu-test.json").write_text(dump_baseline(baseline(figures, epochs=[step] * epochs)))
    assert main(["history"]) == 0
    command = f"    llmperf bisect 09cccccc 10cccccc --metric=tpot -- '{TEST}'\n"
    assert (command in capsys.readouterr().out) == told
    assert shlex.split(command)[-1] == TEST


def test_too_few_points_are_told(folder, capsys):
    """They are neither a change nor no change; one line covers all cells."""
    (folder / "baselines" / "cpu-test.json").write_text(dump_baseline(baseline([1.0, 1.0, 9.0, 9.0])))
    assert main(["history"]) == 0
    assert "  too few points: tpot, weights\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "start"), [("out.svg", b"<?xml"), ("out.png", b"\x89PNG"), ("out.html", b"<!doctype html>")]
)
def test_a_picture_is_drawn_and_is_the_same_each_time(folder, capsys, name, start):
    """Untrusted names are plain text in it, neither formulas nor elements."""
    assert main(["history", "--plot", name]) == 0
    assert f"{name}: 2 cells" in capsys.readouterr().out
    content = (folder / name).read_bytes()
    assert content.startswith(start)
    if not name.endswith(".png"):
        assert b"test_decode[nf4-$&lt;b&gt;] - TPOT" in content
        assert b"<b>" not in content
        assert main(["history", "--plot", f"again-{name}"]) == 0
        assert (folder / f"again-{name}").read_bytes() == content


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plot", "out.gif"], "cannot plot to out.gif: expected a name ending in .svg, .png, .html"),
        (["--plot", "nowhere/out.svg"], "cannot write nowhere/out.svg: No such file"),
        (["test_gone"], "no test 'test_gone'"),
        (["test_decode*", "tpto"], "did you mean 'tpot'"),
        (["test_decode*", "load", "--plot", "out.svg"], "cannot plot 0 cells"),
        (["--baselines", "nowhere"], "cannot read baseline nowhere"),
    ],
)
def test_what_the_user_has_to_mend_is_one_line(folder, capsys, arguments, message):
    """The exit code is 4."""
    assert main(["history", *arguments]) == 4
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("package", ["ruptures", "matplotlib"])
def test_a_missing_extra_is_one_line_with_the_command_that_installs_it(folder, capsys, monkeypatch, package):
    """Both packages come with the extra ``history``."""
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["history", "--plot", "out.svg"]) == 4
    error = capsys.readouterr().err
    assert f"needs {package}, which is not installed: pip install 'pytest-llmperf[history]'" in error
    assert error.count("\n") == 1
