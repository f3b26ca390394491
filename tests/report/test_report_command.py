"""``llmperf report`` and JUnit properties, from a run to the file that another tool reads."""

from __future__ import annotations

import shutil
import subprocess
import xml.etree.ElementTree as ET

import pytest
from sample_verdicts import SAMPLE

from pytest_llmperf.cli import main
from pytest_llmperf.cli.report import FORMATS
from pytest_llmperf.report.github import SUMMARY_BYTES
from pytest_llmperf.verdict.verdict_file import read_verdicts, write_verdicts

SUMMARY = "GITHUB_STEP_SUMMARY"


@pytest.fixture
def verdicts(tmp_path, monkeypatch):
    """A folder with the verdict file of a run."""
    monkeypatch.chdir(tmp_path)
    write_verdicts(tmp_path / "verdicts.json", SAMPLE)
    return tmp_path / "verdicts.json"


@pytest.fixture
def repository_above(project):
    """A repository of which the project is a subfolder; it is gone before tests that need a folder without one."""
    above = project.path.parent
    subprocess.run(["git", "init", "-q", str(above)], check=True)
    yield
    shutil.rmtree(above / ".git")


@pytest.mark.usefixtures("repository_above")
def test_a_run_is_told_with_its_line_in_the_repository_and_figures_in_junit(project):
    """The path is relative to the repository, also if the project is a subfolder."""
    project.write()
    result = project.run("--llmperf-verdicts=verdicts.json", "--junitxml=junit.xml", "-o", "junit_family=xunit2")
    assert result.ret == 0
    (test,) = read_verdicts(project.path / "verdicts.json").tests
    assert (test.file, test.line) == (f"{project.path.name}/test_perf.py", 4)
    (case,) = ET.parse(project.path / "junit.xml").iter("testcase")  # noqa: S314  # our own file
    found = {
        one.get("name"): float(one.get("value")) for one in case.iter("property") if one.get("name") != "token_digest"
    }
    assert found["tpot_ms"] == next(cell.value for cell in test.cells if cell.metric == "tpot_ms")
    assert {"itl_p50_ms", "weights_bytes", "operators_per_token"} <= set(found)


@pytest.mark.parametrize("wanted", FORMATS)
def test_each_format_is_printed_or_written(verdicts, capsys, wanted):
    """Standard output and a file get the same text."""
    assert main(["report", str(verdicts), "--format", wanted]) == 0
    assert main(["report", str(verdicts), "--format", wanted, "-o", "out"]) == 0
    assert capsys.readouterr().out == (verdicts.parent / "out").read_text(encoding="utf-8")


def test_the_summary_is_appended_where_github_says(verdicts, monkeypatch):
    """It follows earlier text of the step, and is only written if requested."""
    target = verdicts.parent / "summary"
    target.write_text("before\n", encoding="utf-8")
    monkeypatch.setenv(SUMMARY, str(target))
    assert main(["report", str(verdicts)]) == 0
    assert target.read_text(encoding="utf-8") == "before\n"
    assert main(["report", str(verdicts), "--summary"]) == 0
    assert target.read_text(encoding="utf-8").startswith("before\n\n### llmperf: FAILED: ")


def test_a_summary_that_has_no_room_is_one_line_and_leaves_the_file_alone(verdicts, monkeypatch, capsys):
    """GitHub would drop all text of the step."""
    target = verdicts.parent / "summary"
    target.write_text("x" * (SUMMARY_BYTES - 100), encoding="utf-8")
    monkeypatch.setenv(SUMMARY, str(target))
    assert main(["report", str(verdicts), "--summary"]) == 4
    assert capsys.readouterr().err == (
        "llmperf: no room: GitHub takes 1048576 bytes of a step's summary, of which 99 are left; "
        "write the verdicts in a step of their own\n"
    )
    assert target.stat().st_size == SUMMARY_BYTES - 100


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Invalid JSON"),
        ('{"schema_version": 1', "Invalid JSON"),
        ("[]", "Input should be an object"),
        ('{"schema_version": 2}', "schema_version: Input should be 1"),
        (SAMPLE.model_dump_json().replace('"tpot_ms"', '"speed\\u001b[31m"'), r"there is no metric 'speed\x1b[31m'"),
        (SAMPLE.model_dump_json().replace('"decided"', '"decided\\n"'), r"decided: Field required"),
    ],
    ids=["empty", "partial", "foreign", "future", "metric", "field"],
)
def test_a_file_that_is_none_is_one_line_and_exit_code_4(verdicts, capsys, text, message):
    verdicts.write_text(text, encoding="utf-8")
    assert main(["report", str(verdicts)]) == 4
    error = capsys.readouterr().err
    assert message in error
    assert error.endswith("expected a file of --llmperf-verdicts\n")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.json"], "cannot read verdicts nowhere.json: No such file"),
        (["verdicts.json", "--summary"], "--summary: GITHUB_STEP_SUMMARY is not set"),
        (
            ["verdicts.json", "--summary", "--format", "bencher"],
            "--summary: found --format",
        ),
        (["verdicts.json", "-o", "nowhere/out"], "nowhere/out: No such file or directory"),
    ],
)
def test_what_the_user_has_to_mend_is_one_line(verdicts, monkeypatch, capsys, arguments, message):
    monkeypatch.delenv(SUMMARY, raising=False)
    assert main(["report", *arguments]) == 4
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
