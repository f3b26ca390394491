"""A gate must not fail open: undecided cells never read as a pass, and fail the run if an option says so."""

from __future__ import annotations

import json
import re
import subprocess
from contextlib import suppress

import jsonschema
import pytest
from perf_project import DECODE_TEST, FAKE_CLOCK

from pytest_llmperf.report.github import comment, workflow_commands
from pytest_llmperf.verdict.verdict_file import read_verdicts

QUIET_MACHINE = (1.0, 1.01, 0.99, 1.0, 1.005)
RENAMED = DECODE_TEST.replace("test_decode", "test_renamed")
SKIPPED = DECODE_TEST.replace("    llmperf.generate", "    pytest.skip('not today')\n    llmperf.generate")
RAISES = DECODE_TEST.replace("    llmperf.generate", "    raise RuntimeError('out of luck')\n    llmperf.generate")
NAN_CLOCK = FAKE_CLOCK.replace("return end - start", 'return float("nan")')
INFINITE_CLOCK = FAKE_CLOCK.replace("return end - start", 'return float("inf")')

FEWER_TOKENS = """
import pytest
import transformers


@pytest.fixture(autouse=True)
def fewer(monkeypatch):
    real = transformers.LlamaForCausalLM.generate

    def cut(self, *args, **kwargs):
        out = real(self, *args, **kwargs)
        out.sequences = out.sequences[:, :-1]
        return out

    monkeypatch.setattr(transformers.LlamaForCausalLM, "generate", cut)
"""
OTHER_ATTENTION = """
import pytest
import pytest_llmperf.measure.bench as bench


@pytest.fixture(autouse=True, scope="session")
def fallen_back():
    real = bench.load

    def load(spec, device):
        loaded = real(spec, device)
        loaded.model.config._attn_implementation = loaded.attention = "eager"
        return loaded

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "load", load)
        yield
"""


@pytest.fixture
def recorded(project):
    """A project whose baseline has a step of 1 ms."""
    project.write()
    project.record(*QUIET_MACHINE)
    return project


def edit(project, change):
    """Edit the baseline by hand."""
    path = project.baseline()
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def one_sample(data):
    last = data["runs"][-1]["run_id"]
    data["runs"] = data["runs"][-1:]
    for rows in ("cells", "observations"):
        data[rows] = [row for row in data[rows] if row["run"] == last]


def no_spread(data):
    for cell in data["cells"]:
        if cell["metric"] == "tpot_ms":
            cell["value"] = 1.0


def other_driver(data):
    for run in data["runs"]:
        run["environment"]["cpu_model"] = "another machine's"


@pytest.mark.parametrize(
    ("test", "conftest", "line"),
    [
        (RENAMED, FAKE_CLOCK, "missing: 1 test of the baseline*test_decode*"),
        (SKIPPED, FAKE_CLOCK, "llmperf: 0 tests, 0 of 0 gating cells decided: none. Nothing was verified."),
        (RAISES, FAKE_CLOCK, "error: *test_decode*: RuntimeError: out of luck"),
        (DECODE_TEST, NAN_CLOCK, "error: *test_decode*nan*"),
        (DECODE_TEST, INFINITE_CLOCK, "error: *test_decode*inf*"),
        (DECODE_TEST, FAKE_CLOCK + FEWER_TOKENS, "error: *test_decode*tokens*"),
        (DECODE_TEST, FAKE_CLOCK + OTHER_ATTENTION, "*attention*"),
    ],
    ids=["renamed", "skipped", "raises", "nan", "infinite", "fewer-tokens", "other-attention"],
)
def test_what_ran_otherwise_is_told_and_fails_where_that_is_asked(recorded, test, conftest, line):
    """Nothing is compared: the summary says so, and ``--llmperf-strict`` makes the run fail."""
    recorded.write(test, conftest=conftest)
    result = recorded.run()
    result.stdout.fnmatch_lines([line])
    assert "unchanged" not in result.stdout.str()
    assert recorded.run("--llmperf-strict").ret == 1


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (one_sample, "inconclusive: 1 cell of 1 test (tpot)*"),
        (other_driver, "not comparable: *cpu_model: another machine's -> *"),
    ],
    ids=["one-sample", "another-machine"],
)
def test_a_baseline_that_cannot_decide_is_told_and_fails_where_that_is_asked(recorded, change, line):
    """By default the run passes with a banner."""
    edit(recorded, change)
    result = recorded.run()
    assert result.ret == 0
    result.stdout.fnmatch_lines([line])
    strict = recorded.run("--llmperf-strict")
    assert strict.ret == 1
    strict.assert_outcomes(failed=1)


def test_a_baseline_without_any_spread_still_needs_more_than_the_margin(recorded):
    """Zero variance does not make a small change a regression."""
    edit(recorded, no_spread)
    assert recorded.run(step_ms=1.005).ret == 0
    assert recorded.run(step_ms=1.5).ret == 1


def test_a_missing_test_is_told_under_xdist_too(recorded):
    """The controller itself collects no tests."""
    recorded.write(RENAMED)
    result = recorded.run("-n1", "--llmperf-fail-on=missing")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["missing: 1 test of the baseline*", "failed: no result of 1 test of the baseline"])


def test_fail_on_chooses(recorded):
    """``--llmperf-fail-on=new`` makes a new test fail; without it, the test passes."""
    recorded.write(DECODE_TEST + DECODE_TEST.replace("test_decode", "test_new"))
    assert recorded.run("--llmperf-fail-on=not_comparable").ret == 0
    result = recorded.run("--llmperf-fail-on=new,missing")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*new, no baseline to compare with*", "FAILED *test_new*"])


def test_a_wrong_outcome_is_refused(recorded):
    """The error lists the valid outcomes."""
    result = recorded.run("--llmperf-fail-on=bad")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --llmperf-fail-on 'bad': expected some of improved, inconclusive, new, *"])


def git(project, *arguments):
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments]
    subprocess.run(command, cwd=project.path, check=True, capture_output=True)


@pytest.fixture
def committed(recorded):
    """The same project with its baseline committed."""
    git(recorded, "init", "-q", "-b", "main")
    git(recorded, "add", "-A")
    git(recorded, "commit", "-qm", "baseline")
    return recorded


def test_a_pull_request_cannot_excuse_itself(committed):
    """A slower baseline in the pull request is ignored and reported."""
    slower = re.sub(r'("metric": "tpot_ms".*?"value": )', r"\g<1>1", committed.baseline().read_text())
    committed.baseline().write_text(slower)
    assert committed.run(step_ms=1.5).ret == 0
    result = committed.run("--llmperf-baseline-ref=main", step_ms=1.5)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["baseline: read from main; * in the working tree differs"])


def test_a_baseline_that_is_not_at_the_revision_is_new(committed):
    """The first baseline of a project, brought by a pull request, is reported too."""
    git(committed, "rm", "-q", "--cached", "-r", "baselines")
    git(committed, "commit", "-qm", "without")
    result = committed.run("--llmperf-baseline-ref=HEAD", step_ms=1.5)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["new: *", "baseline: read from HEAD; * in the working tree is new"])


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--llmperf-baseline-ref=nowhere"], "ERROR: unknown git revision 'nowhere'; expected a commit, *"),
        (["--llmperf-baseline-ref=--all"], "ERROR: '--all' is not a git revision; expected a commit, *"),
        (["--llmperf-baseline-ref=main", "--llmperf-update"], "ERROR: --llmperf-baseline-ref: *leave out*"),
    ],
)
def test_a_wrong_revision_is_refused(committed, arguments, line):
    """One line reports it before anything is measured."""
    result = committed.run(*arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([line])


def test_the_verdict_file_holds_the_evidence(recorded):
    """It has every cell, its evidence, and the command that reproduces it."""
    assert recorded.run("--llmperf-verdicts=out/verdicts.json", step_ms=1.5).ret == 1
    found = read_verdicts(recorded.path / "out" / "verdicts.json")
    assert (found.exit_code, found.failed, found.decided, found.total) == (1, True, 11, 11)
    (test,) = found.tests
    assert test.failed
    assert test.reproduce.endswith("'--llmperf-only=test_perf.py::test_decode[fp32]'")
    cell = next(cell for cell in test.cells if cell.metric == "tpot_ms")
    assert (cell.outcome, cell.fails, cell.value, cell.runs, cell.sessions) == ("regressed", True, 1.5, 5, 5)
    assert cell.ratio == pytest.approx(1.5, rel=0.01)
    assert re.match(r"TPOT ×1\.\d+ \[.*\]: 1\.50 ms > 1\.00 ms baseline", cell.sentence)
    assert found.run is not None
    assert found.run.environment["torch"]


def test_the_verdict_file_fits_its_schema(recorded, capsys):
    """The schema is that of ``llmperf schema verdicts``."""
    from pytest_llmperf.cli import main

    recorded.run("--llmperf-verdicts=verdicts.json", step_ms=1.5)
    capsys.readouterr()
    assert main(["schema", "verdicts"]) == 0
    schema = json.loads(capsys.readouterr().out)
    jsonschema.validate(json.loads((recorded.path / "verdicts.json").read_text()), schema)


def test_verdicts_that_cannot_be_written_fail_the_run(recorded):
    """Otherwise a later reader could take an old file for this run's."""
    (recorded.path / "file").write_text("")
    result = recorded.run("--llmperf-verdicts=file/verdicts.json")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["results could not be written: cannot write verdicts *"])


def test_a_run_that_measured_nothing_is_of_its_device_all_the_same(recorded):
    """Its comment replaces that of an earlier run on the same device."""
    recorded.write(SKIPPED)
    recorded.run("--llmperf-verdicts=verdicts.json")
    found = read_verdicts(recorded.path / "verdicts.json")
    assert (found.tests, found.device_key) == ([], recorded.baseline().stem)


ENDS = {
    "teardown": (
        "@pytest.fixture(autouse=True)\ndef leaks():\n    yield\n    raise RuntimeError('leaked')",
        "exit code 1",
    ),
    "interrupted": ("def test_then(llmperf):\n    raise KeyboardInterrupt", "the run was interrupted"),
}


@pytest.mark.parametrize(("more", "breach"), ENDS.values(), ids=ENDS)
def test_a_run_that_failed_for_another_reason_never_reads_as_passed(recorded, more, breach):
    """The verdict file, and everything made from it, shows the failure."""
    recorded.write(f"{DECODE_TEST}\n\n{more}")
    with suppress(KeyboardInterrupt):
        assert recorded.run("--llmperf-verdicts=verdicts.json", step_ms=1.0).ret
    found = read_verdicts(recorded.path / "verdicts.json")
    assert (found.failed, found.decided > 0) == (True, True)
    assert breach in found.breach
    assert comment(found).splitlines()[1].startswith("### llmperf: FAILED: ")
    assert f"::error title=llmperf::{found.breach}" in workflow_commands(found)


FULL_DISK = """
import pytest_llmperf.runner.session as session
from pytest_llmperf.errors import BaselineError


def full(*_):
    raise BaselineError("cannot write baseline b.json: No space left on device")


session.update_baseline = full
"""


def test_a_baseline_that_cannot_be_written_fails_the_run(project):
    """``llmperf record`` must not continue as if it had recorded."""
    project.write(conftest=FAKE_CLOCK + FULL_DISK)
    result = project.run("--llmperf-update", "--llmperf-measure-only")
    assert result.ret == 1
    result.stdout.fnmatch_lines([
        "baseline NOT updated: cannot write baseline b.json: No space left on device",
        "failed: the baseline could not be updated",
    ])  # fmt: skip
