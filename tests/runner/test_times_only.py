"""Processes that measure only times, for the later blocks of a comparison."""

from __future__ import annotations

import json

import pytest

from pytest_llmperf.measure import peaks
from pytest_llmperf.metrics import METRICS, Kind


def test_a_run_of_times_alone(project, monkeypatch):
    """It has every timed figure and the readings of the guards, and measures no peak rate of the device."""
    for name in ("copy_bandwidth", "matrix_product_rate"):
        monkeypatch.setattr(peaks, name, lambda *_: pytest.fail("a peak rate was measured"))
    project.write()
    assert project.run("--llmperf-measure-only", "--llmperf-times-only", "--llmperf-json=out").ret == 0
    (written,) = (project.path / "out").glob("*.json")
    (result,) = json.loads(written.read_text())["results"]
    kinds = {cell["metric"]: METRICS[cell["metric"]].kind for cell in result["cells"]}
    assert {name for name, kind in kinds.items() if kind is Kind.TIMED} == {
        "tpot_ms", "ttft_ms", "e2e_ms", "prefill_tokens_per_s", "decode_tokens_per_s",
    }  # fmt: skip
    assert set(kinds.values()) == {Kind.TIMED, Kind.INFORMATIVE}
    assert all(cell["value"] for cell in result["cells"] if kinds[cell["metric"]] is Kind.TIMED)
    assert not result.get("work")
    conditions = result["observation"]["conditions"]
    assert "other_processes_cpu_share" in conditions
    assert "copy_bytes_per_s" not in conditions


def test_another_process_may_choose_the_number_of_requests(project):
    """For each test, whatever the test asks for itself; the others, and what is left out, keep their own."""
    project.write()
    given = {"timed": 3, "warmup": 1}
    assert observed(project, given) == (3, 1)
    assert observed(project, {"warmup": 1}) == (2, 1)
    assert observed(project, {"timed": 3}) == (3, 0)
    assert observed(project, given, of="other") == (2, 0)


def observed(project, given, *, of="test_perf.py::test_decode[fp32]"):
    """Numbers of timed and of warm-up requests that a run made."""
    (project.path / "numbers.json").write_text(json.dumps({of: given}))
    asked = ("--llmperf-requests=2", "--llmperf-requests-by-test=numbers.json", "--llmperf-json=out")
    assert project.run("--llmperf-measure-only", "--llmperf-times-only", *asked).ret == 0
    (written,) = (project.path / "out").glob("*.json")
    (result,) = json.loads(written.read_text())["results"]
    return result["observation"]["requests"], result["observation"]["warmup"]["requests"]


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"a": 0}', '{"a": "1"}', '{"a": 1.5}', '{"a": 3}', '{"a": {"timed": 0}}', '{"a": {"timed": "1"}}',
     '{"a": {"timed": 1.5}}', '{"a": {"warmup": -1}}', '{"a": {"warmup": "1"}}', '{"a": {"other": 1}}'],
)  # fmt: skip
def test_other_numbers_of_requests_are_refused(project, text):
    project.write()
    (project.path / "numbers.json").write_text(text)
    found = project.run("--llmperf-measure-only", "--llmperf-requests-by-test=numbers.json")
    assert found.ret == pytest.ExitCode.USAGE_ERROR
    found.stderr.fnmatch_lines(["ERROR: --llmperf-requests-by-test numbers.json: *expected a JSON object by test*"])
