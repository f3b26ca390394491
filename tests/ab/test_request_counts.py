"""Numbers of requests in later blocks: few where processes differ, more where requests do."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from repository import PlayedRuns

from pytest_llmperf.ab import blocks as series_module
from pytest_llmperf.ab.blocks import BlockSeries
from pytest_llmperf.ab.request_counts import Cost, best_count
from pytest_llmperf.ab.side import Side
from pytest_llmperf.ab.stopping import Effort, measure_until_decided
from pytest_llmperf.storage.schema import Warmup

VARIANCES = st.floats(1e-8, 1e-1)
SECONDS = st.floats(0.01, 100.0)


def count(overhead_s=9.0, request_s=1.0, *, within=1e-4, between=1e-4, first=10):
    return best_count(Cost(overhead_s=overhead_s, request_s=request_s), within=within, between=between, first=first)


def test_by_hand():
    """sqrt(9 x pi / 2) requests, if requests vary as processes do."""
    assert count() == round(math.sqrt(9 * math.pi / 2)) == 4
    assert count(within=4e-4) == 8


@given(SECONDS, SECONDS, VARIANCES, VARIANCES, st.integers(1, 50))
def test_it_is_the_best_within_its_bounds(overhead_s, request_s, within, between, first):
    """No other number reaches a precision in less time."""

    def cost(n):
        return (overhead_s + n * request_s) * (between + math.pi / 2 * within / n)

    found = count(overhead_s, request_s, within=within, between=between, first=first)
    allowed = range(min(3, first), 2 * first + 1)
    assert found in allowed
    best = min(allowed, key=cost)
    assert abs(found - best) <= 1 or cost(found) == pytest.approx(cost(best), rel=0.05)


@given(SECONDS, VARIANCES, VARIANCES)
def test_processes_that_do_not_differ_need_no_others(overhead_s, within, between):
    """All requests come from few processes then; and the more processes differ, the fewer requests are worth it."""
    assert count(overhead_s, within=within, between=0.0) == count(overhead_s, within=within, between=-1e-6) == 20
    numbers = [count(overhead_s, within=within, between=factor * between) for factor in (1, 10, 100)]
    assert numbers == sorted(numbers, reverse=True)


@pytest.mark.parametrize(("mad", "asked"), [(0.0, 3), (0.02, 20)])
def test_later_blocks_make_the_number_that_pays(tmp_path, monkeypatch, mad, asked):
    """Processes differ by 2 %; equal requests need three, and requests that differ as much get twice as many."""
    wobble = (1.02, 0.98, 0.98, 1.02, 1.0, 1.02)

    def of(arm, number):
        place = (3 * number + len(arm)) % len(wobble)
        return {"t.py::a": {"tpot_ms": 5.0 * wobble[place], "e2e_ms": 10.0, "mad_log": mad}}

    blocks, written = requests_by_block(of, tmp_path, monkeypatch)
    assert [*written] == [*range(2, blocks + 1)]
    assert written[3] == {"t.py::a": {"timed": asked}}


@pytest.mark.parametrize(("change", "mad", "asked"), [(0.03, 0.0, 3), (0.03, 0.05, 10), (0.0, 0.02, 10)])
def test_the_second_block_makes_no_more_than_the_first(tmp_path, monkeypatch, change, mad, asked):
    """The spread of processes is not known yet: it is at most the changes of the first block."""

    def of(arm, number):
        return {"t.py::a": {"tpot_ms": 5.0 * (1 + change * (arm == "head")), "e2e_ms": 10.0, "mad_log": mad}}

    _, written = requests_by_block(of, tmp_path, monkeypatch)
    assert written[2] == {"t.py::a": {"timed": asked}}


@pytest.mark.parametrize(
    ("base", "head", "asked"),
    [
        ((5, True), (5, True), 1),
        ((5, True), (8, True), 4),
        ((0, True), (0, True), 0),
        ((10, False), (5, True), None),
    ],
)
def test_later_blocks_warm_up_as_long_as_the_first_showed(tmp_path, monkeypatch, base, head, asked):
    """Four requests of a warm-up that became steady were steady; one that did not is made again."""
    warmups = {"base": base, "head": head}

    def of(arm, number):
        made, steady = warmups[arm] if number == 1 else (1, False)
        warmup = Warmup(requests=made, steady=steady, drift=None)
        return {"t.py::a": {"tpot_ms": 5.0 + number % 2, "e2e_ms": 10.0, "warmup": warmup}}

    blocks, written = requests_by_block(of, tmp_path, monkeypatch)
    assert blocks == 8
    warmup = {number: counts["t.py::a"]["warmup"] for number, counts in written.items()}
    assert warmup == ({} if asked is None else dict.fromkeys(range(2, 9), asked))


def requests_by_block(of, tmp_path, monkeypatch):
    """The number of blocks, and the numbers of requests that each block was asked for, by test."""
    monkeypatch.setattr(series_module, "run_perf_tests", PlayedRuns(of, requests=10))
    sides = [Side(name, "0" * 40, tmp_path, "python", {}) for name in ("base", "head")]
    series = BlockSeries(tmp_path / "blocks", *sides, arguments=(), seed=1)
    list(measure_until_decided(series, Effort(most_blocks=8)))
    written = sorted((tmp_path / "blocks").glob("*-requests.json"))
    return len(series.blocks), {int(path.name[:4]): json.loads(path.read_text()) for path in written}
