"""Roofline times of counted work on devices of known peaks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.hardware.data_sheet import DATA_SHEETS, find_data_sheet
from pytest_llmperf.measure.peaks import Peaks, measured_peaks, sheet_peaks
from pytest_llmperf.measure.roofline_time import roofline_figures, roofline_ms
from pytest_llmperf.storage.schema import PhaseWork, StepCounts

NOTHING = StepCounts(operators=0, flops=0, bytes=0, allocations=0, allocated_bytes=0)
COUNTS = st.floats(min_value=0, max_value=1e18)


def work(flops, moved, **more):
    return PhaseWork(
        steps=1, operators={}, flops=flops, bytes=moved, allocations=0, allocated_bytes=0, first=NOTHING, last=NOTHING,
        **more,
    )  # fmt: skip


def values(phases, name="h100"):
    return {figure.metric: figure for figure in roofline_figures(phases, sheet_peaks(find_data_sheet(name)))}


def test_by_hand():
    """An 8B model in bf16 on an H100: decode moves 16 GB for 16 GFLOP; a prefill of 1,000 tokens computes 16 TFLOP."""
    rates = {"flops_per_s": {"bfloat16": 989.5e12}, "bytes_per_s": 3350e9}
    assert roofline_ms({"bfloat16": 16e9}, 16e9, **rates) == pytest.approx(1000 * 16 / 3350)
    assert roofline_ms({"bfloat16": 16e12}, 16e9, **rates) == pytest.approx(1000 * 16 / 989.5)


def test_the_times_of_each_dtype_add_up():
    assert roofline_ms({"a": 2.0, "b": 3.0}, 0, flops_per_s={"a": 1, "b": 2}, bytes_per_s=1) == 3500


@given(COUNTS, COUNTS, COUNTS)
def test_more_work_never_takes_less_time(flops, moved, more):
    rates = {"flops_per_s": {"bfloat16": 1e14}, "bytes_per_s": 1e12}
    time = roofline_ms({"bfloat16": flops}, moved, **rates)
    assert roofline_ms({"bfloat16": flops + more}, moved, **rates) >= time
    assert roofline_ms({"bfloat16": flops}, moved + more, **rates) >= time
    assert time == pytest.approx(max(1e3 * flops / 1e14, 1e3 * moved / 1e12))


@given(COUNTS, COUNTS)
def test_a_faster_device_never_takes_longer(flops, moved):
    """The H200 has the rates of an H100 and more bandwidth."""
    phases = {"decode": work({"bfloat16": flops}, {"bfloat16": moved})}
    assert values(phases, "h200")["roofline_tpot_ms"].value <= values(phases, "h100")["roofline_tpot_ms"].value


@pytest.mark.parametrize("name", DATA_SHEETS)
def test_each_phase_has_its_time(name):
    phases = {"prefill": work({"float16": 2e12}, {"float16": 1e6}), "decode": work({"float16": 1e6}, {"float16": 1e9})}
    found, sheet = values(phases, name), DATA_SHEETS[name]
    assert found["roofline_ttft_ms"].value == pytest.approx(1e3 * 2e12 / sheet.flops_per_s["float16"])
    assert found["roofline_tpot_ms"].value == pytest.approx(1e3 * 1e9 / sheet.bytes_per_s)


@pytest.mark.parametrize(
    ("phase", "name", "reason"),
    [
        (work({"bfloat16": 1.0}, {}), "48GiB:8.9", "the bandwidth of 48gib:8.9 is unknown"),
        (work({"bfloat16": 1.0}, {}), "t4", "the data sheet of t4 has no rate of bfloat16"),
        (work({}, {}, without_formula=["own::matmul"]), "h100", "the FLOPs of own::matmul are unknown"),
        (None, "h100", "FLOPs and bytes were not counted"),
    ],
)
def test_without_a_figure_there_is_a_reason(phase, name, reason):
    found = values({"decode": phase} if phase else {}, name)["roofline_tpot_ms"]
    assert found.value is None
    assert reason in found.reason


def test_measured_peaks_are_those_of_the_device():
    """A product of 512 x 512 matrices, and a copy, are timed; what cannot be multiplied has no rate."""
    peaks = measured_peaks("cpu")
    assert peaks.bytes_per_s > 1e8
    assert all(peaks.flops_per_s(dtype) > 1e8 for dtype in ("float32", "int8"))
    work_of_bools = {"decode": work({"float32": 1.0, "bool": 1.0}, {"float32": 1.0})}
    found = {figure.metric: figure for figure in roofline_figures(work_of_bools, peaks)}
    assert found["roofline_tpot_ms"].reason == "the device's rate of products in bool could not be measured"


def test_a_device_whose_bandwidth_is_unknown_has_no_roofline():
    peaks = Peaks(bytes_per_s=None, flops_per_s={"float32": 1.0}.get, no_bandwidth="no room for a copy", no_rate="{}")
    prefill, decode = roofline_figures({"prefill": work({"float32": 1.0}, {})}, peaks)
    assert (prefill.value, prefill.reason) == (None, "no room for a copy")
    assert (decode.value, decode.reason) == (None, "FLOPs and bytes were not counted")
