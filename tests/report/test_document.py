"""Content of the HTML report before it is rendered."""

from __future__ import annotations

import dataclasses
import re

import pytest
from report_data import TEST, evidence, result, workload
from sample_verdicts import phase_work, time_change, why, work_of

from pytest_llmperf.report import charts
from pytest_llmperf.report.charts import Chart
from pytest_llmperf.report.document import Document, document
from pytest_llmperf.report.html import render
from pytest_llmperf.report.inputs import Evidence
from pytest_llmperf.report.why_text import why_text

FIRST = f"{TEST}[nf4-1]"


def pictures(shown: Document, test: str = FIRST) -> dict[str, Chart]:
    (found,) = (one for one in shown.tests if one.test == test)
    return {chart.title: chart for part in found.parts for figures in part.figures for chart in figures.charts}


@pytest.fixture(scope="module")
def shown() -> Document:
    return document(evidence(error="RuntimeError: no kernel"))


def test_what_failed_comes_first_and_says_both_numbers(shown):
    """The conclusion counts tests, the failures are sentences, and the table begins with them."""
    assert shown.conclusion == "3 of 5 tests failed"
    assert [test for test, _ in shown.failures] == [FIRST, f"{TEST}[nf4-8]", f"{TEST}_broken"]
    assert re.search(r"TPOT ×1\.\d+ \[.*\]: 1\.65 ms > 1\.10 ms baseline", shown.failures[0][1][0])
    assert [row.outcome for row in shown.rows[:3]] == ["error", "regressed", "regressed"]
    assert [row.gates for row in shown.rows] == sorted((row.gates for row in shown.rows), reverse=True)
    row = next(row for row in shown.rows if row.test == FIRST)
    assert (row.baseline, row.now, row.limit, row.fails) == ("1.10 ms", "1.65 ms", "1.15 ms", True)
    assert row.order["change"] == pytest.approx(1.5, rel=0.01)


def test_latency_goes_along_the_tokens(shown):
    """The median gap over requests at each position, from the second token on, with the baseline's TPOT."""
    chart = pictures(shown)["Latency by token position"]
    now, past = chart.traces
    assert now.x == [2, 3, 4, 5]
    assert now.y == pytest.approx([1.32, 1.485, 1.815, 1.98])
    assert past.y[0] == pytest.approx(1.1, rel=0.01)


def test_long_generations_are_drawn_with_fewer_points():
    """Neighbouring positions are combined, the same number for each point."""
    long = workload().model_copy(update={"output_tokens": 1001})
    measured = result("test", long, "now", 1.0)
    measured = measured.model_copy(update={"samples": {"itl_ms": [float(at) for at in range(1000)] * 3}})
    (trace,) = charts.per_token(measured, None).traces
    assert len(trace.x) == 250
    assert (trace.x[1], trace.y[0]) == (6, 1.5)


def test_latency_by_position_needs_requests_of_one_length():
    """If requests differ in length, there is no chart."""
    measured = result("test", workload(), "now", 1.0)
    cut = measured.model_copy(update={"samples": {"itl_ms": measured.samples["itl_ms"][1:]}})
    assert charts.per_token(cut, None) is None


def test_the_distribution_is_of_requests_beside_runs_since_the_accepted_step(shown):
    """Six of the baseline's twelve runs belong to the old level and are not shown."""
    chart = pictures(shown)["Distribution: TPOT"]
    assert [(trace.name, trace.role) for trace in chart.traces] == [
        ("baseline: 6 runs", "baseline"),
        ("this run: 3 requests", "now"),
    ]


def test_history_shows_levels_accepted_steps_and_this_run(shown):
    """The chart has all twelve runs, two levels, one mark after the sixth run with the reason, and this run."""
    chart = pictures(shown)["History: TPOT"]
    assert [trace.name for trace in chart.traces] == ["baseline", "level", "level", "this run"]
    (mark,) = chart.marks
    assert (mark.x, mark.accepted) == (5.5, True)
    assert "accepted: a safer kernel" in mark.label
    assert mark.label.startswith("+1")
    assert (chart.traces[-1].x, chart.traces[-1].y) == ([12.0], [1.65])
    assert "History: token digest" not in pictures(shown)


def test_a_run_that_updated_the_baseline_is_not_its_own_past():
    """The run's own cells, which the file already holds, are excluded."""
    made = evidence()
    updated = made.baseline.model_copy(
        update={
            "runs": [*made.baseline.runs, made.verdicts.run],
            "cells": [*made.baseline.cells, *(cell for one in made.results for cell in one.cells)],
        }
    )
    shown = document(dataclasses.replace(made, baseline=updated))
    assert len(pictures(shown)["History: TPOT"].traces[0].x) == 12


def test_memory_is_shown_by_phase(shown):
    """A phase that was not measured has no bar."""
    past, now = pictures(shown)["Memory by phase"].traces
    assert (past.role, list(now.x)) == ("baseline", ["weights", "decode peak"])
    assert now.y[1] == 2.0


def test_batch_sizes_and_quantizations_stand_side_by_side(shown):
    """There is one family of two batch sizes by two quantizations."""
    titles = [figures.charts[0].title for _, figures in shown.compared]
    assert titles == [
        "Batch scaling: TPOT",
        "Batch scaling: decode rate",
        "Quantizations: TPOT and decode peak allocated",
    ]
    nf4, int8 = shown.compared[0][1].charts[0].traces
    assert (nf4.name, nf4.x, int8.name) == ("nf4", [1, 8], "int8")


def test_the_environment_tells_what_differs_and_what_keeps_runs_apart(shown):
    """A field that only one side has does not block."""
    assert [(one.name, one.then, one.now, one.blocks) for one in shown.differences] == [
        ("torch", "1", "2", True),
        ("kernel", "unknown", "6", False),
    ]
    assert ("torch", "2") in shown.environment


def test_what_is_not_judged_is_told_with_its_test(shown):
    """The load time, the clock and the result of the warm-up are shown."""
    (part,) = next(test for test in shown.tests if test.test == FIRST).parts
    assert ("load time", "9.00 ms") in part.measured
    assert ("warm-up", "4 requests, steady") in part.conditions
    assert ("load", "0.5") in part.conditions


def test_verdicts_alone_make_a_document():
    """Without journal and baseline, it has the table, the memory chart and the comparison of workloads."""
    shown = document(Evidence(verdicts=evidence().verdicts))
    assert set(pictures(shown)) == {"Memory by phase"}
    assert len(shown.compared) == 3


def test_what_is_measured_for_its_output_rate_shows_its_requests_too():
    """Serving: the rate has one figure per run, but the requests are shown as well."""
    made = evidence()
    (first, *_) = made.results
    rate = first.cells[0].model_copy(update={"metric": "output_tokens_per_s", "value": 900.0})
    served = first.model_copy(update={"cells": [rate, *first.cells]})
    shown = document(Evidence(verdicts=made.verdicts, results=[served]))
    assert "Distribution: output rate" not in pictures(shown)
    assert "Distribution: TPOT" in pictures(shown)


def test_verdicts_of_two_revisions_have_no_workloads():
    """Verdicts of ``llmperf ab`` give the table and the sentences."""
    verdicts = evidence().verdicts
    tests = [test.model_copy(update={"workloads": {}}) for test in verdicts.tests]
    shown = document(Evidence(verdicts=verdicts.model_copy(update={"tests": tests})))
    assert [test.parts for test in shown.tests] == [[]] * 4
    assert len(shown.rows) == len(document(Evidence(verdicts=verdicts)).rows)


def test_a_run_that_decided_nothing_is_no_pass():
    """The text is that of the terminal summary."""
    verdicts = evidence().verdicts.model_copy(
        update={"tests": [], "failed": False, "decided": 0, "total": 0, "outcomes": {}, "run": None}
    )
    assert document(Evidence(verdicts=verdicts)).conclusion == "Nothing was verified"


def test_why_stands_with_its_test_and_leads_with_the_failure():
    """The text is the same as on the terminal."""
    found = evidence()
    first, *others = found.verdicts.tests
    changed = work_of(phase_work({"aten::mm": 1}, {}, {}), phase_work({"aten::mm": 3, "<b>": 1}, {}, {}))
    told = first.model_copy(update={"why": why(work=[changed], times=[time_change("aten::mm")])})
    shown = document(dataclasses.replace(found, verdicts=found.verdicts.model_copy(update={"tests": [told, *others]})))
    assert next(one for one in shown.tests if one.test == first.test).why == why_text(told.why, 100).split("\n")
    line = "decode: +3 operators a token: aten::mm 1 -> 3, <b> 0 -> 1; FLOPs ×1.00; bytes ×1.00"
    assert shown.failures[0][1][-1] == line
    page = render(shown)
    escaped = line.replace("<", "&lt;").replace(">", "&gt;")
    assert page.index(f"<br>{escaped}</li>") < page.index(f"<code>{escaped}\n")
