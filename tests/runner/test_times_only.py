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
