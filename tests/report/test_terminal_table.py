"""Terminal output of a run at each width and verbosity."""

from __future__ import annotations

import re
from io import StringIO
from types import SimpleNamespace

import pytest
import report_data  # pytest would collect tests_of if it were imported by name
from _pytest.terminal import TerminalReporter
from report_data import baseline, result, run_record, verdicts_of

from pytest_llmperf.cli.ab_output import progress_lines
from pytest_llmperf.metrics import METRICS, Kind, Limit
from pytest_llmperf.report.results_table import results_table
from pytest_llmperf.report.terminal import write_now
from pytest_llmperf.report.verdict_rows import rows
from pytest_llmperf.stats.interval import Interval
from pytest_llmperf.verdict.comparison import Comparison, Confirmed
from pytest_llmperf.verdict.model import Cell, Outcome, Verdict
from pytest_llmperf.verdict.outcome import Entry

ALONE = Confirmed()


def entries(
    *, model: str = "synthetic:tiny", name: str = "tests/test_perf.py::test_decode", confirmed: Confirmed = ALONE
) -> list[Entry]:
    """A run in which nf4 takes half as long again as in its baseline."""
    now = run_record("now", 20)
    comparison = Comparison(baseline(model=model, name=name), now.environment)
    found = []
    for test, ran in report_data.tests_of(model=model, name=name):
        one = result(test, ran, now.run_id, 1.65 if ran.quantization == "nf4" else 1.1)
        verdicts = comparison.verdicts(one, Limit.of, lambda key: confirmed if key[2] == "tpot_ms" else ALONE)
        found.append(Entry(test=test, device_key="fake", run=now, results=[one], verdicts=verdicts))
    return found


def table(width: int, *, verbosity: int = 0, color: bool = False, **more) -> list[str]:
    found = results_table(entries(**more), width=width, verbosity=verbosity)
    return found.render(width, color=color).splitlines()


@pytest.mark.parametrize("verbosity", [0, 1, 2])
@pytest.mark.parametrize("width", [80, 160])
def test_no_line_is_longer_than_the_terminal_is_wide(width, verbosity):
    """A model's name takes a whole line and does not widen a column."""
    long = f"{'organization/' * 3}model"
    lines = table(width, verbosity=verbosity, model=long)
    assert max(map(len, lines)) <= width
    assert f"{long} nf4 sdpa" in lines
    assert sum("test_decode[nf4-1]" in line for line in lines) == 1


LONG = "test_decode_of_a_very_long_name_with_many_words"


@pytest.mark.parametrize("verbosity", [0, 1])
@pytest.mark.parametrize("width", [40, 50, 60, 70])
@pytest.mark.parametrize("name", ["test_decode", LONG])
def test_in_a_narrow_terminal_names_are_cut_and_each_row_is_a_line(name, width, verbosity):
    """A row keeps its figure and outcome; a test's name keeps its end, which has the parameters."""
    lines = results_table(entries(name=f"t.py::{name}"), width=width, verbosity=verbosity).render(width, color=False)
    rows = [line for line in lines.splitlines() if re.search(r" ms |GiB|MiB|tokens/s", line)]
    assert max(map(len, lines.splitlines())) <= width
    wide = table(200, verbosity=verbosity, name=f"t.py::{name}")
    assert len(rows) == sum("  " in line for line in wide) - 1
    assert all(re.search(r"\d \w+/?\w* .*[a-z]$", row) for row in rows)
    if not verbosity:
        assert [row.split()[0][-4:] for row in rows] == ["4-1]", "4-8]", "8-1]", "8-8]"]


def test_columns_are_left_out_before_a_name_is_folded():
    """At each width a row is one line; a wider table has more columns."""
    found = entries()
    tables = {
        width: results_table(found, width=width).render(width, color=False).splitlines() for width in range(80, 120)
    }
    assert len({len(lines) for lines in tables.values()}) == 1
    assert all(max(map(len, lines)) <= width for width, lines in tables.items())
    told = [("rate" in lines[0], "regressed: tpot" in lines[2]) for lines in tables.values()]
    assert list(dict.fromkeys(told)) == [(False, False), (True, False), (True, True)]


def test_a_narrow_table_says_the_outcome_and_a_wide_one_of_what():
    """The sentence below the table also names the metric."""
    assert table(80)[2].endswith("]  regressed")
    assert table(160)[2].endswith("  regressed: tpot")


def test_more_verbosity_names_metrics_and_then_all_that_could_be_measured():
    """First gating metrics and changes are added, then the rest; a digest is shortened."""
    metrics = {number: [line[:24].strip() for line in table(160, verbosity=number)[3:7]] for number in (0, 1, 2)}
    assert metrics[1] == ["TPOT", "weights", "decode peak allocated", "decode rate"]
    assert "token digest" not in " ".join(table(160, verbosity=1))
    assert "5e1f" in next(line for line in table(160, verbosity=2) if "token digest" in line)


def test_colour_is_for_terminals():
    """Other outputs have no colour."""
    assert "\x1b[31mregressed" in "\n".join(table(80, color=True))
    assert "\x1b" not in "\n".join(table(80))


def test_after_fresh_runs_the_figure_is_what_the_change_is_of():
    """The mean of all runs is shown in the table and in the page's rows, which are also sorted by it."""
    found = entries(confirmed=Confirmed((1.45, 1.45), 1))
    line = results_table(found, width=80).render(80, color=False).splitlines()[2]
    assert " 1.51 ms   1.10 ms  +38% [" in line
    row = next(row for row in rows(verdicts_of(found).tests[0]) if row.metric == "TPOT")
    assert row.now == "1.51 ms"
    assert row.order["now"] == pytest.approx(row.order["baseline"] * row.order["change"])


@pytest.mark.parametrize(
    ("verbosity", "said"), [(0, "F\nllmperf: slower\n"), (-1, "F\nllmperf: slower\n"), (-2, "F")], ids=["", "-q", "-qq"]
)
def test_a_note_between_tests_has_a_line_of_its_own(verbosity, said, request, monkeypatch):
    """This also holds after the dots of ``-q``; nothing is printed at ``-qq``."""
    monkeypatch.setattr(request.config.option, "verbose", verbosity)
    target = StringIO()
    reporter = TerminalReporter(request.config, target)
    reporter.write("F")
    write_now(SimpleNamespace(pluginmanager=SimpleNamespace(get_plugin=lambda _: reporter)), "llmperf: slower")
    assert target.getvalue() == said


@pytest.mark.parametrize(
    ("arguments", "told", "untold"),
    [
        ((), "test_decode[[]fp32[]] *1.00 ms*", "*token digest*"),
        (("-v",), "  TPOT *1.00 ms*", "*token digest*"),
        (("-vv",), "  token digest *", "*n/a*"),
        (("-q",), "llmperf: 1 test, *", "*TPOT*"),
        (("-qq",), "llmperf: 1 test, *", "*llmperf: cpu*"),
    ],
    ids=["plain", "-v", "-vv", "-q", "-qq"],
)
def test_each_verbosity_has_its_lines(project, arguments, told, untold):
    """The terminal has 80 columns, in which both tables fit."""
    project.write()
    project.record(1.00, 1.00, 1.00)
    project.monkeypatch.setenv("COLUMNS", "80")
    found = project.run(*arguments)
    found.stdout.fnmatch_lines([told])
    found.stdout.no_fnmatch_line(untold)
    start = next((at for at, line in enumerate(found.outlines) if line.startswith("synthetic:tiny")), None)
    assert (start is None) is any(word.startswith("-q") for word in arguments)
    assert all(len(line) <= 80 for line in found.outlines if " ms " in line and line.startswith((" ", "test_")))


@pytest.mark.parametrize(("blocks", "change"), [(1, "+50%"), (2, "+50% [+20, +80]")])
def test_a_comparison_tells_no_interval_before_its_first_look(blocks, change):
    """There are too few blocks for an interval."""
    limit, metric = Limit.of(METRICS["tpot_ms"]), METRICS["tpot_ms"]
    verdict = Verdict(
        cell=Cell(test="t.py::test_decode", metric=metric, limit=limit, value=1.5), outcome=Outcome.INCONCLUSIVE,
        kind=Kind.TIMED, ratio=1.5, interval=Interval(low=1.2, high=1.8, level=0.95), blocks=blocks,
    )  # fmt: skip
    standing = SimpleNamespace(verdicts=[verdict], tests=["t.py::test_decode"], undecided=["t.py::test_decode"])
    measured = [SimpleNamespace(seconds=3.0)] * blocks
    first, line = progress_lines(standing, measured, most=24, left_s=45.0)
    assert first.endswith(", 45 s of the budget left")
    assert line == f"  test_decode tpot: {change} after {blocks} block{'s' * (blocks > 1)}"
    assert next(progress_lines(standing, measured, most=24, left_s=119.0)).endswith(", 2 min of the budget left")
