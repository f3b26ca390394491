"""Accepting a change of level, storing an improvement and removing records, as a user types the commands."""

from __future__ import annotations

import json
import re
import shlex
import sys

import pytest

from pytest_llmperf.cli import main

QUIET_MACHINE = (1.00, 1.005, 0.995, 1.002, 0.998)

TWO_TESTS = """
import pytest


@pytest.mark.parametrize("llm", ["fp32"], indirect=True)
def test_decode(llm, llmperf):
    llmperf.generate(llm, batch_size=2)


@pytest.mark.parametrize("llm", ["fp32"], indirect=True)
def test_other(llm, llmperf):
    llmperf.generate(llm, batch_size=1)
"""
DECODE, OTHER = "test_perf.py::test_decode[fp32]", "test_perf.py::test_other[fp32]"


def stored(project):
    return json.loads(project.baseline().read_text())


SESSION = re.compile(r'("session_id": "session (\d)".*?"time": ")[^T]*', re.DOTALL)


def days_apart(found):
    """Date the sessions one day apart, because runs of the same second have no defined order in the file."""
    return f"{found[1]}2026-01-0{int(found[2]) + 1}"


@pytest.fixture
def recorded(project):
    """A project with two tests in five sessions of earlier days."""
    project.write(TWO_TESTS)
    project.record(*QUIET_MACHINE)
    project.baseline().write_text(SESSION.sub(days_apart, project.baseline().read_text()))
    project.monkeypatch.chdir(project.path)
    return project


@pytest.fixture
def command(capsys):
    def run(*arguments: str) -> tuple[int, str]:
        code = main(arguments)
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


def test_an_accepted_step_is_red_before_and_not_compared_after(recorded, command):
    """The other test is unaffected; the file stores the reason; a run at the new level counts once it is merged."""
    slow = recorded.run(step_ms=1.5)
    slow.assert_outcomes(failed=2)
    code, out = command("accept", "test_decode[fp32]", "tpot", "--reason", "a safer kernel")
    assert code == 0, out
    assert f"accepted tpot of {DECODE}" in out
    (epoch,) = stored(recorded)["epochs"]
    assert (epoch["test"], epoch["metric"], epoch["reason"]) == (DECODE, "tpot_ms", "a safer kernel")
    again = recorded.run(step_ms=1.5)
    again.assert_outcomes(passed=1, failed=1)
    again.stdout.fnmatch_lines(["not comparable: *tpot*an accepted change: no run since then*"])
    journals = sorted((recorded.path / ".llmperf" / "runs").glob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns)
    baseline = str(recorded.baseline())
    assert command("merge", baseline, *map(str, journals[-2:]), "-o", baseline)[0] == 0
    last = recorded.run(step_ms=1.5)
    last.stdout.no_fnmatch_line("*an accepted change*")
    last.stdout.fnmatch_lines(["test_decode*1.50 ms*1.50 ms*"])


def test_accepting_a_test_accepts_all_that_is_judged_and_twice_is_once(recorded, command):
    """Informative metrics are not accepted; without a new run, there is nothing more to accept."""
    assert command("accept", "test_dec*", "--reason", "first")[0] == 0
    first = stored(recorded)["epochs"]
    assert {epoch["test"] for epoch in first} == {DECODE}
    assert {"tpot_ms", "ttft_ms", "operators_per_token", "token_digest"} <= {epoch["metric"] for epoch in first}
    assert not {"load_ms", "itl_p50_ms"} & {epoch["metric"] for epoch in first}
    code, out = command("accept", "test_dec*", "--reason", "second")
    assert (code, "were accepted before, have no run since, and keep their reason" in out) == (0, True)
    assert stored(recorded)["epochs"] == first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["accept", "test_decod", "--reason", "x"], f"no test 'test_decod' in this baseline; did you mean {DECODE}"),
        (["accept", "nothing*", "--reason", "x"], "no test 'nothing*'"),
        (["accept", DECODE, "tpto", "--reason", "x"], "unknown metric 'tpto' (did you mean 'tpot'?)"),
        (["accept", DECODE, "load", "--reason", "x"], "load is informative and never judged"),
        (["accept", DECODE, "--reason", " "], "--reason: expected a text"),
        (["accept", DECODE, "--reason", "x", "--record", "0"], "--record 0: expected a whole number"),
        (["accept", DECODE, "--reason", "x", "--devise=cpu"], "unexpected '--devise=cpu'"),
        (["accept", DECODE, "--reason", "x", "--device-key", "gpu"], "no baseline gpu.json under baselines: found cpu"),
        (["accept", DECODE, "--reason", "x", "--baselines", "no"], "no baseline *.json under no: found none"),
        (["prune"], "no criterion given"),
        (["prune", "test_gone"], "no test 'test_gone'"),
        (["prune", "--run", "r\x1b"], "no run 'r\\x1b'"),
        (["prune", "--session", "session 9"], "no session 'session 9' in this baseline; did you mean session 4"),
        (["prune", "--before", "yesterday"], "--before 'yesterday': expected a date such as"),
    ],
)
def test_what_the_user_has_to_mend_is_one_line_and_leaves_the_file(recorded, command, arguments, message):
    """It names the thing and the nearest valid name, with exit code 4."""
    before = recorded.baseline().read_text()
    code, out = command(*arguments)
    assert code == 4
    assert message in out
    assert out.count("\n") == 1
    assert recorded.baseline().read_text() == before


def test_an_ending_of_several_tests_and_a_folder_of_several_devices_are_refused(recorded, command):
    """An ambiguous name is an error."""
    text = recorded.baseline().read_text()
    recorded.baseline().write_text(text.replace(OTHER, f"sub/{DECODE}"))
    code, out = command("accept", "test_decode[fp32]", "--reason", "x")
    assert (code, "matches 2 tests" in out) == (4, True)
    (recorded.path / "baselines" / "other.json").write_text(text)
    code, out = command("accept", DECODE, "--reason", "x")
    assert (code, "baselines of 2 devices: choose one with --device-key" in out) == (4, True)
    assert command("accept", DECODE, "--reason", "x", "--device-key", "other")[0] == 0


def test_prune_removes_tests_and_what_belongs_to_them(recorded, command):
    """It removes cells, observations and workloads; a dry run only prints what it would remove."""
    assert command("accept", "*", "--reason", "x")[0] == 0
    before = stored(recorded)
    code, out = command("prune", "test_other*", "--dry-run")
    assert (code, "would remove 0 of 5 runs" in out, "1 of 2 tests" in out) == (0, True, True)
    assert stored(recorded) == before
    assert command("prune", "test_other*")[0] == 0
    after = stored(recorded)
    for rows in ("cells", "observations", "epochs"):
        assert {row["test"] for row in after[rows]} == {DECODE}
    assert len(after["workloads"]) == 1
    assert len(after["runs"]) == 5


def test_prune_removes_a_bad_session_a_run_or_all_before_a_date(recorded, command):
    """Records that match every criterion are removed."""
    assert "removed 1 of 5 runs" in command("prune", "--session", "session 3")[1]
    run_of = {run["session_id"]: run["run_id"] for run in stored(recorded)["runs"]}
    assert "removed 1 of 4 runs" in command("prune", "--run", run_of["session 4"])[1]
    assert "removed 0 of 3 runs" in command("prune", "--before", "2026-01-02", "test_decode*")[1]
    assert "removed 1 of 3 runs" in command("prune", "--before", "2026-01-02")[1]
    assert {run["session_id"] for run in stored(recorded)["runs"]} == {"session 1", "session 2"}


def test_an_improvement_is_banked_by_the_one_command_that_the_summary_names(recorded):
    """It accepts the change and records the new level of that test, with the options of the run that showed it."""
    result = recorded.run("-k", "decode", step_ms=0.5)
    (line,) = (line for line in result.outlines if line.startswith("improved: to make this the new level, run: "))
    command = line.partition("run: ")[2].replace("--record 5", "--record 2")
    words = shlex.split(command)
    assert words[:4] == ["llmperf", "accept", DECODE, "tpot"]
    recorded.monkeypatch.setenv("STEP_MS", "0.5")
    recorded.monkeypatch.delenv("LLMPERF_SESSION_ID")
    banked = recorded.pytester.run(
        sys.executable, "-m", "pytest_llmperf", *words[1:], "-p", "no:benchmark", "--llmperf-explain=off"
    )
    assert banked.ret == 0, banked.outlines
    assert len(stored(recorded)["runs"]) == 7
    again = recorded.run(step_ms=0.5)
    again.stdout.fnmatch_lines(["test_decode*500 us*500 us*inconclusive"])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), True),
        (("perf",), True),
        (("-k", "test_"), True),
        (("-k", "other"), False),
        (("perf/test_perf.py",), False),
        (("perf/test_perf.py::test_other[fp32]",), False),
        (("more",), False),
        (("--ignore=perf/test_gone.py",), False),
    ],
)
def test_a_file_that_is_gone_is_told_where_it_was_looked_for(recorded, arguments, told):
    """A run of everything or of that file's folder names the command to remove it; a run of other tests does not."""
    for folder in ("perf", "more"):
        (recorded.path / folder).mkdir()
    (recorded.path / "perf" / "test_perf.py").write_text(TWO_TESTS)
    (recorded.path / "more" / "test_more.py").write_text(TWO_TESTS.replace("test_decode", "test_more"))
    (recorded.path / "test_perf.py").unlink()
    text = recorded.baseline().read_text().replace(DECODE, "perf/test_gone.py::test_decode[fp32]")
    recorded.baseline().write_text(text.replace(OTHER, "pytest_llmperf.suite.test_quantization::test_decode[fp32]"))
    result = recorded.run(*arguments)
    line = (
        "missing: 1 test of the baseline, *perf/test_gone.py::test_decode[[]fp32[]]*llmperf prune 'perf/test_gone.py::*"
    )
    if told:
        result.stdout.fnmatch_lines([line])
    else:
        result.stdout.no_fnmatch_line("missing: *")
