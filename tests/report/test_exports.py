"""What other tools are given, each checked against what that tool accepts."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families as text_families
from sample_verdicts import HOSTILE, SAMPLE, WORKLOAD, a_test, cell, verdict_file

from pytest_llmperf.errors import UsageError
from pytest_llmperf.report.exports import bencher, custom_bigger_is_better, custom_smaller_is_better
from pytest_llmperf.report.openmetrics import openmetrics
from pytest_llmperf.verdict.metrics import METRICS, Better
from pytest_llmperf.verdict.model import Outcome

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
"""What github-action-benchmark's documentation says of both custom tools."""

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
    """By the parser of Prometheus' own client; the older format is what a Pushgateway reads."""
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
    """Whatever its unit is."""
    numbers = [cell(Outcome.NEW, key) for key in METRICS]
    families = list(openmetrics_families(openmetrics(verdict_file(a_test("t", *numbers)))))
    assert len(families) == len(METRICS) + 1


def test_the_whole_text_is_what_was_agreed():
    """After a change that is meant: write the text into the golden file, and read the difference."""
    assert openmetrics(SAMPLE) == (GOLDEN / "openmetrics.txt").read_text(encoding="utf-8")


def test_what_is_no_number_or_about_an_anchor_is_left_out():
    """A digest, a figure that could not be read, and a second verdict on one figure."""
    cells = [
        cell(Outcome.NEW, "token_digest", value="0123456789abcdef"),
        cell(Outcome.NEW, "weights_bytes", value=None),
        cell(Outcome.INVALID, "ttft_ms", value=float("nan")),
        cell(Outcome.UNCHANGED),
        cell(Outcome.UNCHANGED, against="v1.0"),
    ]
    assert json.loads(bencher(verdict_file(a_test("t", *cells)))) == {"t": {"tpot_ms": {"value": 4.2}}}


def test_workloads_of_one_test_are_told_apart():
    """By the workload's hash, as in a baseline."""
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
    """Numbers that were made up, and a run that measured nothing: an empty file would look like a quiet day."""
    with pytest.raises(UsageError, match=message):
        write(verdicts)
