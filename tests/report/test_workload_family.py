"""Families of workloads over prompt lengths: charts and costs of context."""

from __future__ import annotations

import pytest
from report_data import workload

from pytest_llmperf.metrics import METRICS
from pytest_llmperf.report.workload_comparison import charts
from pytest_llmperf.report.workload_family import OVER_CONTEXT, MeasuredWorkload, families


def measured(lengths, *, quantizations=("nf4", "int8"), batches=(1, 8)):
    """TPOT is 6 ms and 0.5 ms per 1000 tokens; int8 takes 1 ms longer. TTFT is 0.1 ms a token."""
    return [
        MeasuredWorkload(
            f"tests/test_perf.py::test_generate[{q}-b{b}-in{n}]",
            workload(q, b).model_copy(update={"input_tokens": n, "prompt_sha256": f"{b} {n}"}),
            {"tpot_ms": 6 + (q == "int8") + 0.0005 * n, "ttft_ms": 0.1 * n, "weights_bytes": 2.0**20},
        )
        for q in quantizations
        for b in batches
        for n in lengths
    ]


def titles(family):
    return [chart.title for chart in charts(family)]


def test_lengths_are_drawn_over_context():
    """One series for each quantization and batch size; the summary has the fitted cost."""
    (family,) = families(measured([64, 1024, 8192]))
    drawn = {chart.title: chart for chart in charts(family)}
    tpot = drawn["Context: TPOT"]
    assert [trace.name for trace in tpot.traces] == [
        "nf4, batch 1", "nf4, batch 8", "int8, batch 1", "int8, batch 8"
    ]  # fmt: skip
    assert tpot.traces[0].x == [64, 1024, 8192]
    assert tpot.traces[0].y == pytest.approx([6.032, 6.512, 10.096])
    assert "int8, batch 8: TPOT 7.00 ms + 500 us per 1000 input tokens (R² 1.000)" in tpot.summary
    assert drawn["Context: TTFT"].traces[2].y == pytest.approx([6.4, 102.4, 819.2])
    assert [trace.name for trace in drawn["Batch scaling: TPOT"].traces][:2] == ["nf4, 64 in", "nf4, 1024 in"]


def test_one_length_is_drawn_as_before():
    """Names of series have no length, and there is no chart over context."""
    (family,) = families(measured([64]))
    assert titles(family) == ["Batch scaling: TPOT", "Quantizations: TPOT and weights"]
    assert [trace.name for trace in next(charts(family)).traces] == ["nf4", "int8"]
    assert not [*family.context_costs(METRICS["tpot_ms"])]


def test_two_lengths_have_a_quotient_without_r_squared():
    """And a figure that falls with the length is shown as it is."""
    (family,) = families(measured([64, 1064], quantizations=["nf4"], batches=[1]))
    (cost,) = family.context_costs(METRICS["tpot_ms"])
    assert str(cost) == "TPOT 6.00 ms + 500 us per 1000 input tokens"
    first, second = measured([64, 1064], quantizations=["nf4"], batches=[1])
    falling = [first, MeasuredWorkload(second.test, second.workload, second.figures | {"tpot_ms": 5.032})]
    (cost,) = families(falling)[0].context_costs(METRICS["tpot_ms"])
    assert str(cost) == "TPOT 6.10 ms - 1.00 ms per 1000 input tokens"


def test_a_length_without_a_figure_is_left_out():
    """A single output token has no TPOT: its chart over context is of TTFT alone."""
    found = [
        MeasuredWorkload(one.test, one.workload, {"tpot_ms": 1.0} | ({"ttft_ms": 2.0} if number else {}))
        for number, one in enumerate(measured([64, 128, 256], quantizations=["nf4"], batches=[1]))
    ]
    (family,) = families(found)
    assert titles(family) == ["Context: TPOT"]
    (cost,) = family.context_costs(METRICS["ttft_ms"])
    assert cost.lengths == [128, 256]


def test_metrics_over_context_are_times():
    """Their costs are milliseconds per token."""
    assert {metric.unit for metric in OVER_CONTEXT} == {"ms"}
