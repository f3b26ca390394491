"""Export formats, each validated against the schema or parser of the tool that reads it."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import jsonschema
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from perf_project import DECODE_TEST
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families as text_families
from report_data import baseline, evidence
from sample_verdicts import HOSTILE, SAMPLE, WORKLOAD, a_test, cell, verdict_file

from pytest_llmperf.ab.selftest_stats import SelftestFile, add_up
from pytest_llmperf.errors import UsageError
from pytest_llmperf.metrics import METRICS, Better
from pytest_llmperf.report.exports import bencher, custom_bigger_is_better, custom_smaller_is_better
from pytest_llmperf.report.openmetrics import openmetrics
from pytest_llmperf.storage.baseline_file import dump_baseline
from pytest_llmperf.storage.dataframe import COLUMNS, TYPES, export_runs
from pytest_llmperf.storage.journal import Header, Journal, Note
from pytest_llmperf.storage.schema import Baseline, TestResult
from pytest_llmperf.verdict.model import Outcome
from pytest_llmperf.verdict.outcome import Entry

GOLDEN = Path(__file__).parent / "golden"
NUMBER = {"type": "number"}
TEXT = {"type": "string", "minLength": 1}

CUSTOM_SCHEMA = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["name", "unit", "value"],
        "properties": {"name": TEXT, "unit": TEXT, "value": NUMBER, "range": TEXT, "extra": TEXT},
        "additionalProperties": False,
    },
}
"""Schema of both custom tools, from github-action-benchmark's documentation."""

_METRIC = {
    "type": "object",
    "properties": {"value": NUMBER, "lower_value": NUMBER, "upper_value": NUMBER},
    "required": ["value"],
}
BENCHER_SCHEMA = {
    "type": "object",
    "patternProperties": {".+": {"type": "object", "patternProperties": {".+": _METRIC}}},
}
"""https://bencher.dev/bmf.json"""

XUNIT2 = {
    "testsuites": ({"name"}, {"testsuite"}),
    "testsuite": (
        {"name", "errors", "failures", "skipped", "tests", "time", "timestamp", "hostname"},
        {"testcase"},
    ),
    "testcase": ({"classname", "name", "time"}, {"properties", "failure"}),
    "properties": (set(), {"property"}),
    "property": ({"name", "value"}, set()),
    "failure": ({"message"}, set()),
}
"""Allowed attributes and children of each element that pytest writes for these tests."""

PARQUET = pa.schema([
    *((name, "string") for name in ("device_key", "run_id", "session_id")),
    ("time", pa.timestamp("us", tz="UTC")),
    ("commit", "string"),
    ("dirty", "bool"),
    *((name, "string") for name in ("test", "metric", "unit")),
    ("value", "double"),
    ("text", "string"),
    ("count", "int64"),
    *((name, "double") for name in ("mean_log", "mad_log")),
    *((name, "string") for name in ("reason", "workload", "engine", "model", "revision", "quantization", "dtype",
                                    "attention", "execution")),
    *((name, "int64") for name in ("batch_size", "input_tokens", "output_tokens")),
    *((name, "string") for name in ("sampling", "prompt_sha256", "settings")),
])  # fmt: skip

WRITERS = (custom_smaller_is_better, custom_bigger_is_better, bencher, openmetrics)


@pytest.mark.parametrize(
    ("write", "better"), [(custom_smaller_is_better, Better.SMALLER), (custom_bigger_is_better, Better.LARGER)]
)
def test_github_action_benchmark_gets_one_file_a_direction(write, better):
    found = json.loads(write(SAMPLE))
    jsonschema.validate(found, CUSTOM_SCHEMA)
    names = [entry["name"].rpartition(" ")[2] for entry in found]
    assert {metric.better for metric in METRICS.values() if metric.name in names} == {better}
    assert len({entry["name"] for entry in found}) == len(found)


def test_bencher_gets_a_tests_figures_by_metric():
    found = json.loads(bencher(SAMPLE))
    jsonschema.validate(found, BENCHER_SCHEMA)
    assert found["test_perf.py::test_fine"] == {"tpot_ms": {"value": 4.01}, "output_tokens_per_s": {"value": 4.2}}
    assert all(len(metric) <= 64 for metric in METRICS)


@pytest.mark.parametrize("families", [openmetrics_families, text_families], ids=["OpenMetrics", "older text format"])
def test_prometheus_reads_every_figure_in_base_units(families):
    """Prometheus' own client parses the text, also as the older format that a Pushgateway reads."""
    text = openmetrics(SAMPLE)
    assert text.endswith("# EOF\n")
    found = {family.name: family for family in families(text)}
    tpot = found["llmperf_tpot_seconds"]
    assert [sample.value for sample in tpot.samples] == [pytest.approx(0.00401), pytest.approx(0.009)]
    labels = tpot.samples[1].labels
    assert (labels["quantization"], labels["batch_size"], labels["workload"]) == ("nf4", "8", WORKLOAD.hash)
    assert labels["model"] == HOSTILE.replace("\n", "\\n").replace("\x1b", "\\x1b")
    outcomes = {sample.labels["outcome"]: sample.value for sample in found["llmperf_cells"].samples}
    assert (outcomes["regressed"], outcomes["improved"], outcomes["error"]) == (2, 0, 1)


def test_every_metric_has_a_name_that_prometheus_takes():
    """The name is valid for every unit."""
    numbers = [cell(Outcome.NEW, key) for key in METRICS]
    families = list(openmetrics_families(openmetrics(verdict_file(a_test("t", *numbers)))))
    assert len(families) == len(METRICS) + 1


def test_the_whole_text_is_what_was_agreed():
    """After an intended change, write the text into the golden file and review the difference."""
    assert openmetrics(SAMPLE) == (GOLDEN / "openmetrics.txt").read_text(encoding="utf-8")


def test_what_is_no_number_or_about_an_anchor_is_left_out():
    """A digest, a missing figure and a verdict against an anchor are omitted."""
    cells = [
        cell(Outcome.NEW, "token_digest", value="0123456789abcdef"),
        cell(Outcome.NEW, "weights_bytes", value=None),
        cell(Outcome.INVALID, "ttft_ms", value=float("nan")),
        cell(Outcome.UNCHANGED),
        cell(Outcome.UNCHANGED, against="v1.0"),
    ]
    assert json.loads(bencher(verdict_file(a_test("t", *cells)))) == {"t": {"tpot_ms": {"value": 4.2}}}


def test_workloads_of_one_test_are_told_apart():
    """The name has the workload's hash, as in a baseline."""
    two = a_test("t", cell(Outcome.NEW), cell(Outcome.NEW).model_copy(update={"workload": "other"}))
    assert list(json.loads(bencher(verdict_file(two)))) == [f"t {WORKLOAD.hash}", "t other"]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(
    ("verdicts", "message"),
    [
        (verdict_file(a_test("t", cell(Outcome.NEW)), injected=["tpot:+50%"]), r"tpot:\+50% was injected"),
        (verdict_file(a_test("t")), "no figures to export"),
    ],
)
def test_what_must_not_reach_a_dashboard_is_refused(write, verdicts, message):
    """Injected figures are refused, and a run without figures, since an empty file would look like a normal day."""
    with pytest.raises(UsageError, match=message):
        write(verdicts)


TESTS = (
    DECODE_TEST
    + """
def test_call(cuda_timer):
    cuda_timer(len, "words", repetitions=2)

def test_broken(llmperf):
    raise RuntimeError("no kernel")
"""
)


def test_junits_file_is_as_pytest_writes_it_with_figures_as_properties(project):
    """There are only elements of xunit2; each figure is a number, except for the digest."""
    project.write(TESTS)
    assert project.run("--junitxml=junit.xml").ret == 1
    root = ET.parse(project.path / "junit.xml").getroot()  # noqa: S314  # our own file
    assert root.tag == "testsuites"
    for element in root.iter():
        attributes, children = XUNIT2[element.tag]
        assert set(element.attrib) == attributes
        assert {child.tag for child in element} <= children
    found = {case.get("name"): properties_of(case) for case in root.iter("testcase")}
    assert set(found) == {"test_decode[fp32]", "test_call", "test_broken"}
    assert set(found["test_call"]) == {"call_ms"}
    assert {"tpot_ms", "weights_bytes", "token_digest"} <= set(found["test_decode[fp32]"]) <= set(METRICS)
    assert found["test_broken"] == {}
    for figures in found.values():
        assert all(float(figure) >= 0 for name, figure in figures.items() if name != "token_digest")


def properties_of(case: ET.Element) -> dict[str, str]:
    return {one.get("name"): one.get("value") for one in case.iterfind("properties/property")}


@pytest.fixture
def source(tmp_path):
    """A file of twelve runs."""
    path = tmp_path / "fake.json"
    path.write_text(dump_baseline(baseline()))
    return path


def narrow(schema: pa.Schema) -> pa.Schema:
    """Normalize the width of texts, which depends on the version of pandas."""
    texts = [field.with_type(pa.string()) if pa.types.is_large_string(field.type) else field for field in schema]
    return pa.schema(texts)


def test_parquet_has_the_documented_columns_and_types(source, tmp_path):
    """The types hold also for columns without values, such as the logarithms here."""
    assert export_runs(source, tmp_path / "runs.parquet") == len(baseline().cells)
    schema = narrow(pq.read_schema(tmp_path / "runs.parquet").remove_metadata())
    environment = [(name, "string") for name in ("env_torch", "env_device_name")]
    assert schema == pa.schema([*PARQUET, *pa.schema(environment)])
    assert pq.read_table(tmp_path / "runs.parquet")["mean_log"].null_count == len(baseline().cells)


def test_a_baseline_without_runs_has_the_same_columns(tmp_path):
    """So the files of several devices can be concatenated."""
    (tmp_path / "fake.json").write_text(dump_baseline(Baseline(device_key="fake")))
    assert export_runs(tmp_path / "fake.json", tmp_path / "runs.parquet") == 0
    assert narrow(pq.read_schema(tmp_path / "runs.parquet").remove_metadata()) == PARQUET


def test_csv_has_the_documented_columns_and_reads_as_their_types(source, tmp_path):
    """Numbers parse as numbers, and texts are unchanged."""
    export_runs(source, tmp_path / "runs.csv")
    kinds = {name: kind for name, kind in TYPES.items() if name != "time"}
    found = pd.read_csv(tmp_path / "runs.csv", dtype=kinds, parse_dates=["time"])
    assert list(found.columns) == [*COLUMNS, "env_torch", "env_device_name"]
    assert {name: str(found[name].dtype) for name in kinds} == kinds
    assert str(found["time"].dtype).startswith("datetime64")
    export_runs(source, tmp_path / "runs.parquet")
    other = pd.read_parquet(tmp_path / "runs.parquet")
    for name in ("test", "metric", "value", "text", "batch_size", "prompt_sha256"):
        assert found[name].dropna().tolist() == other[name].dropna().tolist()


@pytest.mark.parametrize("sign", "=+-@")
def test_a_spreadsheet_runs_no_text_of_csv(tmp_path, sign):
    """Test names come from pull requests; Parquet is not opened by spreadsheets and needs no escape."""
    name = f"{sign}HYPERLINK(1)"
    stored = baseline()
    cells = [cell.model_copy(update={"test": name}) for cell in stored.cells]
    (tmp_path / "fake.json").write_text(dump_baseline(stored.model_copy(update={"cells": cells})))
    for target in ("runs.csv", "runs.parquet"):
        export_runs(tmp_path / "fake.json", tmp_path / target)
    assert set(pd.read_csv(tmp_path / "runs.csv")["test"]) == {f"'{name}"}
    assert set(pd.read_parquet(tmp_path / "runs.parquet")["test"]) == {name}


def test_json_files_are_as_the_reference_says(tmp_path):
    """The journal, ``--llmperf-json`` and the selftest's file are valid; omitted defaults are not required."""
    made = evidence()
    journal = Journal(tmp_path / "run.jsonl", device_key="fake", run=made.verdicts.run)
    journal.append(made.results[0])
    journal.append_note(Note(test="t", error="RuntimeError"))
    entry = Entry(test="t", device_key="fake", run=made.verdicts.run, results=made.results)
    selftest = add_up([], [0.05], tool="pytest-llmperf 0", device_key="fake", kind="sleep")
    lines = [*journal.path.read_text().splitlines(), entry.model_dump_json(), selftest.model_dump_json()]
    for line, model in zip(lines, (Header, TestResult, Note, Entry, SelftestFile), strict=True):
        jsonschema.validate(json.loads(line), model.model_json_schema())
