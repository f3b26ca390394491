"""Blocks: balanced order, kept when whole, gone on with after an interruption; and what they add up to."""

from __future__ import annotations

import shutil
from dataclasses import replace
from itertools import islice

import pytest
from repository import PlayedRuns

from pytest_llmperf.ab import blocks as series_module
from pytest_llmperf.ab.analysis import Standing
from pytest_llmperf.ab.blocks import BlockSeries, block_orders
from pytest_llmperf.ab.compare import comparison_outcome
from pytest_llmperf.ab.side import Side
from pytest_llmperf.ab.stopping import Effort, measure_until_decided
from pytest_llmperf.cli.ab_output import _disturbed_lines, result_lines
from pytest_llmperf.errors import UsageError
from pytest_llmperf.report.why_text import why_line
from pytest_llmperf.storage.provenance import Imported
from pytest_llmperf.storage.schema import PhaseWork, StepCounts
from pytest_llmperf.verdict.model import Outcome
from pytest_llmperf.verdict.verdict_file import verdict_file

NOISE = (0.0, 0.004, -0.006, 0.002, -0.003, 0.005, -0.001, 0.003)


def figures(slowdown=1.0, operators=10.0):
    """Figures of one quiet test; head differs by a factor."""

    def of(arm, number):
        factor = slowdown if arm == "head" else 1.0
        noise = 1 + NOISE[(number * 3 + len(arm)) % len(NOISE)]
        return {
            "t.py::a": {"tpot_ms": 5.0 * factor * noise, "operators_per_token": operators if arm == "head" else 10.0}
        }

    return of


@pytest.fixture
def start(tmp_path, monkeypatch):
    """A series whose processes are played."""

    def begin(of, *, arguments=("-q",), **more):
        played = PlayedRuns(of, **more)
        monkeypatch.setattr(series_module, "run_perf_tests", played)
        sides = [Side(name, "0" * 40, tmp_path, "python", {}) for name in ("base", "head")]
        return BlockSeries(tmp_path / "blocks", *sides, arguments=arguments, seed=1), played

    return begin


def measure(series, blocks):
    for _ in range(blocks):
        series.measure(())
    return Standing(series.blocks, final=True)


def outcomes(standing):
    return {(verdict.cell.test, verdict.cell.metric.name): verdict.outcome for verdict in standing.verdicts}


def test_orders_mirror_each_other_two_by_two():
    """ABBA or BAAB, by chance."""
    orders = list(islice(block_orders(3), 40))
    assert all(first == second[::-1] for first, second in zip(orders[::2], orders[1::2], strict=True))
    assert {order[0] for order in orders[::2]} == {"base", "head"}


@pytest.mark.parametrize(
    ("slowdown", "outcome"), [(1.0, Outcome.UNCHANGED), (1.15, Outcome.REGRESSED), (0.85, Outcome.IMPROVED)]
)
def test_a_few_quiet_blocks_decide(start, slowdown, outcome):
    """A change needs eight blocks, its absence fewer."""
    series, _ = start(figures(slowdown))
    standing = measure(series, 8)
    assert outcomes(standing)["t.py::a", "tpot"] is outcome
    assert standing.undecided == []
    assert standing.null_trip == ""
    assert next(v.blocks for v in standing.verdicts if v.cell.metric.name == "tpot") == (4 if slowdown == 1.0 else 8)


def test_the_verdict_file_has_the_workloads_that_head_measured(start):
    """Each test its own, for the page and the exports; one that head could not measure has none."""

    def of(arm, number):
        return figures()(arm, number) | {"t.py::b": ValueError("no such layer")}

    series, _ = start(of)
    tests = verdict_file(
        comparison_outcome(series, measure(series, 4)), command=["llmperf", "ab", "main"], exit_code=0
    ).tests
    assert {test.test: [one.model for one in test.workloads.values()] for test in tests} == {
        "t.py::a": ["m"], "t.py::b": [],
    }  # fmt: skip
    assert {cell.workload for cell in tests[0].cells} == {*tests[0].workloads}


def test_a_counted_regression_explains_itself_by_the_work_of_both_sides(start):
    """From the first block, without a profiler; base's work may be missing, and a test with equal work says nothing."""

    def of(arm, _number):
        count = 11.0 if arm == "head" else 10.0
        work = {"decode": counted_work(count)}
        return {
            "t.py::a": {"operators_per_token": count, "work": work},
            "t.py::b": {"operators_per_token": count, "work": work if arm == "head" else {}},
            "t.py::c": {"operators_per_token": 5.0, "work": {"decode": counted_work(5.0)}},
        }

    series, _ = start(of)
    outcome = comparison_outcome(series, measure(series, 1))
    tests = verdict_file(outcome, command=["llmperf", "ab", "main"], exit_code=1).tests
    found = {test.test: why_line(test.why) if test.why else "" for test in tests}
    assert found == {
        "t.py::a": "decode: +1 operators a token: aten::mm 10 -> 11; FLOPs ×1.00; bytes ×1.00",
        "t.py::b": "not explained: base: it counted no work of this workload",
        "t.py::c": "",
    }
    said = list(result_lines(outcome, series.blocks, null_trip=""))
    assert said[said.index("why: t.py::a") + 1].split("\n") == [
        found["t.py::a"], "counted work per token in decode, beside base: nothing else",
    ]  # fmt: skip


def test_files_of_the_same_version_are_told(start):
    """A build that the user asks for has its version in common with what is installed."""
    series, _ = start(figures())
    standing = measure(series, 1)
    build = "dep @ file:///dep.whl#sha256=00"
    series._sides["head"] = replace(series._sides["head"], requirements=("new @ file:///new.whl", build))
    imported = {arm: Imported(distributions={"dep": "1", "new": arm}) for arm in ("base", "head")}
    series.blocks[0] = replace(series.blocks[0], imported=imported)
    told = comparison_outcome(series, standing).differences
    assert told == ["new: base -> head", "dep: 1 -> file:///dep.whl#sha256=00"]


def test_versions_that_differ_are_compared_and_explained(start):
    """A stored baseline would not be comparable. Operators with other names are no change; more of them are."""

    def of(arm, _number):
        work = counted_work(10.0)
        renamed = work.model_copy(update={"operators": {"aten::bmm": 10.0}})
        more = work.model_copy(update={"operators": {"aten::mm": 10.0, "aten::cat": 1.0}})
        return {
            "t.py::same": {"operators_per_token": 10.0, "work": {"decode": renamed if arm == "head" else work}},
            "t.py::more": {
                "operators_per_token": 11.0 if arm == "head" else 10.0,
                "work": {"decode": more if arm == "head" else work},
            },
        }

    versions = {
        "base": {"transformers": "5.17.0"},
        "head": {"transformers": "5.23.0"},
    }
    series, _ = start(of, environments=versions)
    outcome = comparison_outcome(series, measure(series, 1))
    found = {entry.test: ([one.outcome for one in entry.verdicts], entry.why) for entry in outcome.entries}
    assert found["t.py::same"] == ([Outcome.UNCHANGED], None)
    outcomes_of_more, why = found["t.py::more"]
    assert outcomes_of_more == [Outcome.REGRESSED]
    assert why_line(why).startswith("decode: +1 operators a token: aten::cat 0 -> 1")
    assert outcome.differences == ["transformers: 5.17.0 -> 5.23.0"]


def counted_work(products):
    step = StepCounts(operators=products, flops=2.0, bytes=4.0, allocations=1, allocated_bytes=4)
    return PhaseWork(
        steps=3, operators={"aten::mm": products}, flops={"float32": 2.0}, bytes={"float32": 4.0}, allocations=1,
        allocated_bytes=4, first=step, last=step,
    )  # fmt: skip


def test_before_the_first_look_nothing_is_decided(start):
    """However clear it seems."""
    series, _ = start(figures(2.0))
    series.measure(())
    assert Standing(series.blocks).undecided == ["t.py::a"]
    assert outcomes(measure(series, 2))["t.py::a", "tpot"] is Outcome.INCONCLUSIVE


def test_exact_metrics_need_no_statistics(start):
    """One more operator is a fact."""
    series, _ = start(figures(operators=11.0))
    assert outcomes(measure(series, 1))["t.py::a", "operators_per_token"] is Outcome.REGRESSED


def test_blocks_after_the_first_measure_only_times(start):
    """Equal exact figures are decided by the first block and keep its evidence."""
    series, played = start(figures())
    *_, standing = measure_until_decided(series, Effort())
    assert played.times_only == [False] * 2 + [True] * 6
    assert set(outcomes(standing).values()) == {Outcome.UNCHANGED}
    exact = next(verdict for verdict in standing.verdicts if verdict.cell.metric.name == "operators_per_token")
    assert (exact.cell.value, exact.baseline, exact.runs) == (10.0, 10.0, 1)


def test_an_exact_figure_that_changed_is_measured_once_more(start):
    """It may have varied."""
    series, played = start(figures(operators=11.0))
    *_, standing = measure_until_decided(series, Effort())
    assert played.times_only == [False] * 4 + [True] * 4
    assert outcomes(standing)["t.py::a", "operators_per_token"] is Outcome.REGRESSED
    exact = next(verdict for verdict in standing.verdicts if verdict.cell.metric.name == "operators_per_token")
    assert (exact.cell.value, exact.baseline, exact.runs) == (11.0, 10.0, 2)


def test_counts_alone_need_two_blocks_where_they_changed(start):
    """One where they are equal."""

    def of(arm, _number):
        return {"t.py::a": {"operators_per_token": 11.0 if arm == "head" else 10.0}}

    for figure, blocks in ((of, 2), (lambda _arm, number: of("base", number), 1)):
        series, _ = start(figure)
        shutil.rmtree(series._folder)
        *_, standing = measure_until_decided(start(figure)[0], Effort())
        assert {len(pairs.head) for pairs in standing._pairs.values()} == {blocks}


def test_an_exact_figure_that_varies_is_measured_in_every_block(start):
    """It needs blocks as a timed one does, until it is decided."""

    def of(arm, number):
        peak = 2.0**30 * (1.05 if (arm, number) == ("head", 1) else 1.0)
        return {"t.py::a": figures()(arm, number)["t.py::a"] | {"decode_peak_allocated_bytes": peak}}

    series, played = start(of)
    *_, standing = measure_until_decided(series, Effort())
    assert not any(played.times_only)
    assert outcomes(standing)["t.py::a", "decode_peak_allocated"] is Outcome.UNCHANGED


def test_a_first_block_whose_times_are_invalid_needs_no_further_counts(start):
    """Its counts are valid."""
    series, played = start(disturbed({1}))
    *_, standing = measure_until_decided(series, Effort())
    assert played.times_only == [False] * 2 + [True] * (len(played.times_only) - 2)
    assert set(outcomes(standing).values()) == {Outcome.UNCHANGED}


def test_a_machine_that_moves_base_beside_base_decides_no_change(start):
    """The null control vetoes every change of the session, and exact metrics stand."""
    series, played = start(lambda arm, number: {"t.py::a": of(arm, number)})

    def of(arm, number):
        cells = dict(figures(1.3, operators=11.0)(arm, number)["t.py::a"])
        cells["tpot_ms"] *= 1.2 if len(played.calls) % 2 == 0 else 1.0  # what runs second is slower
        return cells

    standing = measure(series, 8)
    assert "the same code differs from itself in tpot of t.py::a" in standing.null_trip
    found = outcomes(standing)
    assert found["t.py::a", "tpot"] is Outcome.INCONCLUSIVE
    assert found["t.py::a", "operators_per_token"] is Outcome.REGRESSED


def test_a_test_that_only_head_has_is_new_and_one_that_only_base_has_is_missing(start):
    """And the others go on."""

    def of(arm, number):
        both = figures()(arm, number)
        own = "t.py::added" if arm == "head" else "t.py::gone"
        return both | {own: both["t.py::a"]}

    standing = measure(start(of)[0], 4)
    found = outcomes(standing)
    assert (found["t.py::added", "tpot"], found["t.py::a", "tpot"]) == (Outcome.NEW, Outcome.UNCHANGED)
    assert standing.missing == ["t.py::gone"]


@pytest.mark.parametrize("side", ["head", "base"])
def test_a_test_that_fails_on_one_side(start, side):
    """On head it is an error; on base it is new, with base's reason."""

    def of(arm, number):
        both = figures()(arm, number)
        fails = side == ("head" if arm == "head" else "base")
        return both | {"t.py::b": ValueError("no such layer") if fails else both["t.py::a"]}

    standing = measure(start(of)[0], 4)
    if side == "head":
        assert standing.error("t.py::b") == "no such layer"
        assert ("t.py::b", "tpot") not in outcomes(standing)
    else:
        verdict = next(v for v in standing.verdicts if v.cell.test == "t.py::b")
        assert (verdict.outcome, verdict.reason) == (Outcome.NEW, "base could not measure it: no such layer")
    assert outcomes(standing)["t.py::a", "tpot"] is Outcome.UNCHANGED


def test_another_workload_is_not_comparable(start):
    """A length that head changed."""
    series, _ = start(figures(), output_tokens=8)
    verdicts = measure(series, 4).verdicts
    assert {verdict.outcome for verdict in verdicts} == {Outcome.NOT_COMPARABLE}
    assert verdicts[0].reason == "workload output_tokens: 4 -> 8"


def test_blocks_that_were_whole_are_gone_on_with(start):
    """An interruption costs the block that it hit, and the order goes on where it was."""

    def interrupted(arm, number):
        return KeyboardInterrupt() if (arm, number) == ("head", 3) else figures()(arm, number)

    series, played = start(interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure(series, 4)
    again, played_again = start(figures())
    assert [block.number for block in again.blocks] == [1, 2]
    again.measure(())
    expected = list(islice(block_orders(1), 3))
    assert [arm for arm, _ in played.calls[:4]] == [*expected[0], *expected[1]]
    assert [arm for arm, _ in played_again.calls] == [*expected[2]]


def test_only_what_is_asked_for_is_measured_again(start):
    """Tests that are decided cost no more blocks, and their verdict stays."""

    def of(arm, number):
        both = figures()(arm, number)
        return both | {"t.py::b": both["t.py::a"]}

    series, played = start(of)
    measure(series, 4)
    series.measure(["t.py::b"])
    assert played.calls[-1][1] == ["t.py::b"]
    blocks = {v.cell.test: v.blocks for v in Standing(series.blocks).verdicts if v.cell.metric.name == "tpot"}
    assert blocks == {"t.py::a": 4, "t.py::b": 4}


def test_a_file_or_test_that_base_has_not_is_left_out_of_base(start, tmp_path):
    """What else was asked for goes on; head has to know all of it."""
    (tmp_path / "t.py").write_text("")

    def of(arm, number):
        return figures()(arm, number) if arm == "head" or "new.py" not in played.arguments else 4

    series, played = start(of, arguments=["t.py", "new.py", "t.py::b", "-q"])
    played.words = f"ERROR: not found: {tmp_path}/t.py::b\nERROR: file or directory not found: new.py\n"
    standing = measure(series, 4)
    assert outcomes(standing)["t.py::a", "tpot"] is Outcome.UNCHANGED
    assert [words for arm, words in played.asked if arm == "head"] == [["t.py", "new.py", "t.py::b", "-q"]] * 4
    assert [words for arm, words in played.asked if arm == "base"][1:] == [["t.py", "-q"]] * 4


def test_where_base_has_nothing_of_what_was_asked_all_is_new(start):
    """And base is not run for all else that it has."""

    def of(arm, number):
        return figures()(arm, number) if arm == "head" else 4

    series, played = start(of, arguments=["new.py"])
    played.words = "ERROR: file or directory not found: new.py\n"
    assert {verdict.outcome for verdict in measure(series, 4).verdicts} == {Outcome.NEW}
    assert [words for arm, words in played.asked if arm == "base"] == [["new.py"]]


@pytest.mark.parametrize("code", [2, 3, 4, -9, 137])
def test_a_process_that_dies_stops_the_comparison(start, code):
    """With its exit code, what it said last and where its output is; whole blocks are kept."""

    def of(arm, number):
        return code if (arm, number) == ("head", 2) else figures()(arm, number)

    series, _ = start(of)
    with pytest.raises(UsageError, match=rf"^head: pytest ended with exit code {code}: played \(see .*head.log\)$"):
        measure(series, 4)
    assert len(start(figures())[0].blocks) == 1


def disturbed(blocks, arm="head"):
    """Figures of which one arm is disturbed, and ten times as slow, in some blocks."""

    def of(found, number):
        figure = figures()(found, number)["t.py::a"]
        if found == arm and number in blocks:
            return {"t.py::a": figure | {"tpot_ms": 50.0, "invalid": "a neighbour"}}
        return {"t.py::a": figure}

    return of


@pytest.mark.parametrize("arm", ["base", "head"])
def test_a_disturbed_block_is_not_averaged_in(start, arm):
    """The first one of all: the others make up for it, and counts are compared all the same."""
    series, _ = start(disturbed({1}, arm))
    standing = measure(series, 5)
    assert outcomes(standing)["t.py::a", "tpot"] is Outcome.UNCHANGED
    assert outcomes(standing)["t.py::a", "operators_per_token"] is Outcome.UNCHANGED
    assert next(v.blocks for v in standing.verdicts if v.cell.metric.name == "tpot") == 4
    (line,) = _disturbed_lines(series.blocks)
    assert line == "disturbed: timings of t.py::a are invalid in 1 of 5 blocks: a neighbour"


def test_a_test_that_is_disturbed_each_time_stays_open(start):
    """Until one block counts, and is measured on."""
    series, _ = start(disturbed(range(1, 5)))
    standing = measure(series, 4)
    verdict = next(v for v in standing.verdicts if v.cell.metric.name == "tpot")
    assert (verdict.outcome, verdict.reason) == (Outcome.INVALID, "none of its blocks is valid: a neighbour")
    assert standing.undecided == ["t.py::a"]
    assert standing.null_trip == ""


def test_a_new_test_that_was_disturbed_is_new(start):
    """Base has nothing to compare it with, however many blocks follow."""

    def of(arm, _number):
        return {"t.py::a": {"tpot_ms": 5.0, "invalid": "a neighbour"}} if arm == "head" else {}

    series, _ = start(of)
    standing = measure(series, 1)
    assert outcomes(standing)["t.py::a", "tpot"] is Outcome.NEW
    assert standing.undecided == []


def test_a_test_that_head_did_not_run_is_not_missing(start):
    """After ``-x``, say: it was collected. One that was not is gone."""
    tests = {name: {"operators_per_token": 10.0} for name in ("t.py::a", "t.py::b", "t.py::c")}
    series, _ = start(lambda arm, _number: {"t.py::a": tests["t.py::a"]} if arm == "head" else tests)
    block = replace(series.measure(()), imported={"head": Imported(collected=["t.py::a", "t.py::b"])})
    assert Standing([block]).missing == ["t.py::c"]


def test_what_the_sides_ran_differently_is_told(start):
    """Beside what a run's environment names itself."""
    series, _ = start(figures())
    standing = measure(series, 1)
    versions = {"base": {"helper": "1.0", "torch": "2", "gone": "1"}, "head": {"helper": "2.0", "torch": "3"}}
    series.blocks[0] = replace(
        series.blocks[0], imported={arm: Imported(distributions=found) for arm, found in versions.items()}
    )
    assert comparison_outcome(series, standing).differences == ["gone: 1 -> none", "helper: 1.0 -> 2.0"]


@pytest.mark.parametrize("operators", [11.0, 10.0], ids=["regressed", "unchanged"])
def test_other_dependencies_are_part_of_why(start, operators):
    """They are told once: with the test that regressed, or for the run if none did."""
    series, _ = start(figures(operators=operators))
    standing = measure(series, 1)
    versions = {"base": {"helper": "1.0"}, "head": {"helper": "2.0"}}
    found = {arm: Imported(distributions=one) for arm, one in versions.items()}
    series.blocks[0] = replace(series.blocks[0], imported=found)
    outcome = comparison_outcome(series, standing)
    said = list(result_lines(outcome, series.blocks, null_trip=""))
    told = said.index("base and head differ in helper: 1.0 -> 2.0")
    regressed = operators > 10.0
    assert "base and head differ" not in "".join(said[told + 1 :])
    assert [bool(entry.why) for entry in outcome.entries] == [regressed]
    assert (said[told - 1] == "why: t.py::a") is regressed
