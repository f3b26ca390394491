"""The HTML report, written by the real commands and shown in a browser."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import sys
from pathlib import Path

import pytest
from report_data import evidence

from pytest_llmperf.cli import main
from pytest_llmperf.report.document import document
from pytest_llmperf.report.html import render
from pytest_llmperf.storage.baseline_file import dump_baseline
from pytest_llmperf.storage.journal import Journal
from pytest_llmperf.verdict.verdict_file import write_verdicts

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>'\"\x1b[2J\n`|{{7*7}}\u202e"
SHOWN = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>'\"\\x1b[2J\\n`|{{7*7}}\\u202e"


def charts_of(page: str) -> list[dict]:
    return json.loads(re.search(r'<script type="application/json" id="charts">(.*?)</script>', page, re.DOTALL)[1])


def titles(page: str) -> set[str]:
    return {chart["title"] for chart in charts_of(page)}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A project after a run: its verdicts, its kept journal and its baseline."""
    made = evidence()
    write_verdicts(tmp_path / "verdicts.json", made.verdicts)
    journal = Journal(tmp_path / ".llmperf" / "runs" / "now.jsonl", device_key="fake", run=made.verdicts.run)
    for result in made.results:
        journal.append(result)
    (tmp_path / "baselines").mkdir()
    (tmp_path / "baselines" / "fake.json").write_text(dump_baseline(made.baseline))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_writes_its_report(project):
    """``--llmperf-report`` makes the folder and one file with verdict, figures, charts and the environment."""
    project.write()
    project.record(1.00, 1.01, 0.99)
    assert project.run("--llmperf-report=out/report.html", "--llmperf-inject=tpot:+50%").ret == 1
    page = (project.path / "out" / "report.html").read_text()
    for words in (
        "INJECTED tpot:+50%",
        "test_perf.py::test_decode[fp32]",
        "TPOT ×1.",
        ": 1.50 ms > 1.00 ms baseline, limit ×",
        "operators / token",
        "--llmperf-only=test_perf.py::test_decode[fp32]",
        "Linux",
    ):
        assert html.escape(words) in page
    assert {"Latency by token position", "Distribution: TPOT", "Memory by phase", "History: TPOT"} <= titles(page)


def test_a_run_that_compares_nothing_reports_what_it_measured(project):
    """The report has no verdicts and does not say that the run passed."""
    project.write()
    assert project.run("--llmperf-report=report.html", "--llmperf-measure-only").ret == 0
    page = (project.path / "report.html").read_text()
    assert "Nothing was verified" in page
    assert "Nothing was compared." in page
    assert {"Latency by token position", "Distribution: TPOT", "Memory by phase"} <= titles(page)


def test_a_report_that_cannot_be_written_fails_the_run_and_says_so(project):
    """The same holds for verdicts that cannot be written."""
    project.write()
    (project.path / "taken").write_text("")
    result = project.run("--llmperf-report=taken/report.html")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["results could not be written: cannot write report *taken/report.html: *"])


def test_the_command_finds_what_lies_beside_the_verdicts(folder):
    """It finds the run's kept journal and the device's baseline."""
    assert main(["report", "verdicts.json", "--format", "html", "-o", "report.html"]) == 0
    page = (folder / "report.html").read_text()
    assert {"Latency by token position", "Distribution: TPOT", "Memory by phase", "History: TPOT"} <= titles(page)
    assert main(["report", "verdicts.json", "--format", "html", "-o", "again.html"]) == 0
    assert (folder / "again.html").read_text() == page


def test_verdicts_that_were_carried_elsewhere_suffice(folder, capsys, monkeypatch):
    """A CI artifact has no files beside it; given files are read from their paths."""
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    assert main(["report", "../verdicts.json", "--format", "html"]) == 0
    assert "History: TPOT" not in titles(capsys.readouterr().out)
    named = ["--journal", "../.llmperf/runs/now.jsonl", "--baselines", "../baselines"]
    assert main(["report", "../verdicts.json", "--format", "html", *named]) == 0
    assert {"Latency by token position", "History: TPOT"} <= titles(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected a file of --llmperf-verdicts"),
        ('{"tool": "x", "exit_code"', "expected a file of --llmperf-verdicts"),
        ('{"schema_version": 1, "device_key": "fake", "runs": []}', "expected a file of --llmperf-verdicts"),
        ("[1, 2]", "expected a file of --llmperf-verdicts"),
    ],
    ids=["empty", "partial", "a baseline", "foreign"],
)
def test_a_file_that_holds_no_verdicts_is_one_line(folder, capsys, content, message):
    """The exit code is 4, and there is no report."""
    (folder / "verdicts.json").write_text(content)
    assert main(["report", "verdicts.json", "--format", "html", "-o", "report.html"]) == 4
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--journal", "nowhere.jsonl"], "cannot read journal nowhere.jsonl: No such file"),
        (["--journal", "verdicts.json"], "cannot read journal verdicts.json: line 1: not the header"),
        (["--journal", "other.jsonl"], "other.jsonl: it belongs to run 'another'; the verdicts belong to run 'now'"),
        (["--baselines", "nowhere"], "no baseline of 'fake' under nowhere"),
        (["--format", "github", "--journal", "other.jsonl"], "--journal and --baselines are for --format html"),
    ],
)
def test_what_the_user_has_to_mend_is_one_line(folder, capsys, arguments, message):
    """A given file that is missing, invalid or of another run is an error of one line."""
    text = (folder / ".llmperf" / "runs" / "now.jsonl").read_text()
    (folder / "other.jsonl").write_text(text.replace('"run_id":"now"', '"run_id":"another"'))
    assert main(["report", "verdicts.json", "--format", "html", *arguments]) == 4
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("package", ["jinja2", "plotly", "ruptures"])
def test_a_missing_extra_is_one_line_before_anything_is_measured(folder, project, capsys, monkeypatch, package):
    """The line has the command that installs it."""
    monkeypatch.setitem(sys.modules, package, None)
    line = f"the HTML report needs {package}, which is not installed: pip install 'pytest-llmperf[report]'"
    assert main(["report", str(folder / "verdicts.json"), "--format", "html"]) == 4
    assert line in capsys.readouterr().err
    project.write()
    result = project.run("--llmperf-report=report.html")
    assert result.ret == 4
    result.stderr.fnmatch_lines([f"*{line.replace('[', '[[]')}"])


def test_names_that_came_from_outside_are_text():
    """Untrusted names are escaped in the markup, in attributes, and in the script's data."""
    made = evidence(model=HOSTILE, name=HOSTILE, reason=HOSTILE, error=HOSTILE)
    page = render(document(made))
    assert "window.hacked=1</script>" not in page
    assert "<img" not in page
    assert len(re.findall(r"<script", page)) == 3
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert html.escape(SHOWN) in page.replace("&#39;", "&#x27;").replace("&#34;", "&quot;")
    assert any(SHOWN in chart["summary"] for chart in charts_of(page))


def test_nothing_runs_but_the_scripts_that_the_policy_names():
    """Only the page's script and the unpacked plotly run; nothing is fetched."""
    page = render(document(evidence()))
    policy = re.search(r'Content-Security-Policy" content="(.*?)">', page)[1]
    own = re.search(r"<script>(.*?)</script>", page, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none';")
    assert not re.search(r"""(?:src|href)=["'](?!#)""", page.partition("</head>")[0])


@pytest.fixture(scope="module")
def browser():
    """The installed Chromium."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
        from chromium import Browser, find_chromium

        executable = find_chromium()
        if executable is None:
            pytest.skip("needs Chromium")
        with Browser(executable) as running:
            yield running


def test_a_browser_sorts_filters_and_draws(browser, tmp_path):
    """The page works offline, with hostile names and at a phone's width, without injected scripts or errors."""
    path = tmp_path / "report.html"
    path.write_text(render(document(evidence(model=HOSTILE, error="RuntimeError"))))
    browser.open(path.as_uri())
    visible = "[...document.querySelectorAll('#table tbody tr')].filter((row) => !row.hidden)"
    assert browser.run(f"{visible}[0].dataset.outcome") == "error"
    everything = browser.run(f"{visible}.length")
    browser.run("document.querySelector('#outcomes [value=regressed]').click()")
    assert browser.run(f"{visible}.length") == 2 < everything
    browser.run("document.querySelector('[data-column=baseline] button').click()")
    assert browser.run("document.querySelector('[data-column=baseline]').ariaSort") == "ascending"
    browser.run("document.querySelector('#table tbody tr:not([hidden]) a').click()")
    browser.wait_for("document.querySelector('details[open] .drawing .main-svg') !== null")
    assert browser.run("window.hacked") is None
    for dark in (False, True):
        browser.open(path.as_uri(), width=390, height=844, dark=dark)
        assert browser.run("document.documentElement.scrollWidth") == 390
    assert browser.problems == []
