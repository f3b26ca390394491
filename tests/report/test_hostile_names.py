"""Hostile names in every output: escaped, on one line, without effect on a terminal or a page."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import asdict, replace
from types import SimpleNamespace

import pandas as pd
import pytest
from report_data import evidence
from sample_verdicts import HOSTILE, hostile_why, hostile_work, time_change

from pytest_llmperf.cli.ab_output import result_lines
from pytest_llmperf.cli.gate_command import final_line
from pytest_llmperf.metrics import METRICS, Limit
from pytest_llmperf.report.baseline_table import baseline_lines
from pytest_llmperf.report.document import document
from pytest_llmperf.report.exports import bencher, custom_bigger_is_better, custom_smaller_is_better
from pytest_llmperf.report.github import comment, summary, workflow_commands
from pytest_llmperf.report.history_plot import write_plot
from pytest_llmperf.report.history_text import change_lines
from pytest_llmperf.report.html import render
from pytest_llmperf.report.openmetrics import openmetrics
from pytest_llmperf.report.terminal import write_summary
from pytest_llmperf.report.why_text import why_line, why_text
from pytest_llmperf.runner.context import _trace_name
from pytest_llmperf.runner.pytest_benchmark import rows_of
from pytest_llmperf.runner.session import _file_name
from pytest_llmperf.storage.baseline_file import dump_baseline
from pytest_llmperf.storage.dataframe import export_runs
from pytest_llmperf.verdict.comparison import Comparison
from pytest_llmperf.verdict.level_history import series_of
from pytest_llmperf.verdict.outcome import Entry, RunOutcome, failure_text
from pytest_llmperf.verdict.verdict_file import verdict_file

NAME = f"test_perf.py::test_slow[{HOSTILE}]"


class Reporter:
    """Fake of pytest's terminal reporter."""

    _tw = SimpleNamespace(fullwidth=200, hasmarkup=False)

    def __init__(self, verbosity):
        self.verbosity = verbosity
        self.lines = []

    def section(self, title, **_more):
        self.lines.append(title)

    def write_line(self, line):
        self.lines.append(line)


class Sample:
    """A run whose tests, model and exception have that name, after twelve others."""

    def __init__(self):
        self.evidence = evidence(model=HOSTILE, name=NAME, reason=HOSTILE)
        self.baseline, run = self.evidence.baseline, self.evidence.verdicts.run
        comparison = Comparison(self.baseline, run.environment)
        self.entries = [
            Entry(
                test=one.observation.test,
                device_key="fake",
                run=run,
                results=[one],
                verdicts=[replace(verdict, blocks=4) for verdict in comparison.verdicts(one, Limit.of)],
                timings=[f"{HOSTILE}: 1 ms"],
                work_changes=[hostile_work(one.workload.hash)],
                time_changes=[time_change(HOSTILE)],
                code_changes=[hostile_why().code],
            )
            for one in self.evidence.results
        ]
        broken = Entry(test=f"{NAME}_broken", device_key="fake", run=run, error=f"ValueError: {HOSTILE}")
        self.run = RunOutcome(
            compared=True,
            entries=[*self.entries, broken],
            missing=[f"{NAME}_gone"],
            differences=[f"driver: {HOSTILE} -> 2"],
            unreported={f"{NAME}_lost": None},
        )
        self.verdicts = verdict_file(self.run, command=["pytest"], exit_code=1)
        self.series = series_of(self.baseline, metric=METRICS["tpot_ms"])


@pytest.fixture(scope="module")
def sample():
    return Sample()


def summary_of(sample, verbosity):
    reporter = Reporter(verbosity)
    write_summary(reporter, sample.run)
    return "\n".join(reporter.lines)


def ab_text(sample, null_trip=""):
    arm = SimpleNamespace(invalid={(NAME, "w", "tpot_ms"): f"{HOSTILE} ran"})
    block = SimpleNamespace(number=1, seconds=1.0, arms={"head": arm}, device="")
    return "\n".join(result_lines(sample.run, [block], null_trip=null_trip))


def plotted(sample, path):
    write_plot(sample.series, path, title=HOSTILE)
    return path.read_text()


TERMINAL = {
    "results and summary": lambda sample: summary_of(sample, 0),
    "results with -v": lambda sample: summary_of(sample, 1),
    "results with -vv": lambda sample: summary_of(sample, 2),
    "a failed test": lambda sample: failure_text(sample.entries[0].failing, [HOSTILE]),
    "why": lambda _sample: f"{why_line(hostile_why())}\n{why_text(hostile_why(), 80)}",
    "llmperf show": lambda sample: "\n".join(baseline_lines(sample.baseline, name=NAME, every_metric=True)),
    "llmperf history": lambda sample: "\n".join(change_lines(sample.series, name=NAME)),
    "llmperf ab": ab_text,
    "llmperf gate": lambda sample: final_line(sample.verdicts),
    "annotations": lambda sample: workflow_commands(sample.verdicts),
    "openmetrics": lambda sample: openmetrics(sample.verdicts),
}
MARKUP = {
    "comment": lambda sample, _path: comment(sample.verdicts),
    "step summary": lambda sample, _path: summary(sample.verdicts),
    "page": lambda sample, _path: render(document(replace(sample.evidence, verdicts=sample.verdicts))),
    "plot.svg": lambda sample, path: plotted(sample, path / "plot.svg"),
    "plot.html": lambda sample, path: plotted(sample, path / "plot.html"),
}


def exported(sample, path):
    (path.parent / "fake.json").write_text(dump_baseline(sample.baseline))
    export_runs(path.parent / "fake.json", path)
    return path


def row_texts(sample, *, params: bool) -> list[str]:
    """Return the texts of pytest-benchmark's rows."""
    rows = [asdict(row) for entry in sample.entries for row in rows_of(entry)]
    return [*texts([row["params"] if params else {**row, "params": {}} for row in rows])]


DATA = {
    "customSmallerIsBetter": lambda sample, _path: json.loads(custom_smaller_is_better(sample.verdicts)),
    "customBiggerIsBetter": lambda sample, _path: json.loads(custom_bigger_is_better(sample.verdicts)),
    "bencher": lambda sample, _path: json.loads(bencher(sample.verdicts)),
    "runs.csv": lambda sample, path: exported(sample, path / "runs.csv").read_text().split("\n"),
    "runs.parquet": lambda sample, path: pd.read_parquet(exported(sample, path / "runs.parquet")).to_dict("list"),
    "pytest-benchmark": lambda sample, _path: row_texts(sample, params=False),
}


def texts(data) -> Iterator[str]:
    """Return every text in a value, including the names of its parts."""
    if isinstance(data, dict):
        yield from (text for pair in data.items() for part in pair for text in texts(part))
    elif isinstance(data, list | tuple):
        yield from (text for part in data for text in texts(part))
    elif isinstance(data, str):
        yield data


def assert_one_line_each(found: list[str]) -> None:
    """Assert that a name is present, is escaped and begins no line, where a GitHub runner reads commands."""
    assert any("octocat" in line for line in found)
    assert [line for line in found if not line.isprintable()] == []
    assert [line for line in found if line.lstrip().startswith("::error::owned")] == []


@pytest.mark.parametrize("output", TERMINAL)
def test_a_hostile_name_stays_on_its_line(sample, output):
    assert_one_line_each(TERMINAL[output](sample).split("\n"))


@pytest.mark.parametrize("output", MARKUP)
def test_a_hostile_name_is_no_markup(sample, output, tmp_path):
    text = MARKUP[output](sample, tmp_path)
    assert_one_line_each(text.split("\n"))
    assert "<img" not in text


@pytest.mark.parametrize("output", DATA)
def test_a_hostile_name_is_printable_for_who_reads_the_file(sample, output, tmp_path):
    """JSON has its own escapes, which its reader undoes."""
    assert_one_line_each([*texts(DATA[output](sample, tmp_path))])


def test_a_null_control_that_trips_names_its_test_on_one_line(sample):
    assert_one_line_each(ab_text(sample, null_trip=f"base differs from itself in TPOT of {NAME}").split("\n"))


def test_what_pytest_benchmark_may_group_by_is_printable(sample):
    assert_one_line_each(row_texts(sample, params=True))


def test_a_file_of_figures_or_traces_is_named_by_plain_characters(sample):
    """With ``--llmperf-json`` and ``--llmperf-profile``, no name can leave its folder."""
    names = [_file_name(one.observation.test, one) for one in sample.evidence.results]
    names.append(_trace_name(f"../{NAME}", HOSTILE, "plan"))
    assert [name for name in names if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", name)] == []


TIMED_TEST = f"""
import pytest

@pytest.mark.parametrize("word", [{HOSTILE!r}])
def test_call(cuda_timer, word):
    cuda_timer(len, word, repetitions=2, name=word)
"""


def test_a_run_that_meets_them_writes_and_says_nothing_else(project):
    """The real command: its terminal output, JUnit's file and one file per workload."""
    project.write(TIMED_TEST)
    result = project.run("-v", "--junitxml=junit.xml", "--llmperf-json=out", "--benchmark-json=bench.json")
    assert result.ret == 0
    assert_one_line_each(result.outlines)
    (case,) = ET.parse(project.path / "junit.xml").iter("testcase")  # noqa: S314  # our own file
    assert_one_line_each([*case.attrib.values()])
    assert [one.get("name") for one in case.iter("property")] == ["call_ms"]
    (written,) = (project.path / "out").iterdir()
    assert re.fullmatch(r"[a-z0-9-]+\.json", written.name)
