"""Choose how many requests each test makes in the processes of later blocks.

**Timed requests** go where the variance is. More processes average out what differs between processes; more requests
average out what differs within one. The number of requests that reaches a precision in the least time is n = sqrt(c0 /
c1 x within / between): c0 is the time that a process needs for the test before its first timed request, c1 that of a
request, and the variances are those of a request within its process and of processes (Kalibera and Jones 2013,
*Rigorous Benchmarking in Reasonable Time*, section 6). A block stays at one process a side, because what blocks have in
common cancels in their ratio. After one block, the cells' changes stand for their spread, as if the code had not
changed; the second block never makes more requests than the first.

**Warm-up requests** are those that the first block shows to be necessary. Its warm-up ends when two windows of requests
show no trend, so the requests of both windows were steady already, and only those before them warm up.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from pytest_llmperf.ab.analysis import Pairs, Standing
from pytest_llmperf.ab.blocks import ARMS, MeasuredBlock
from pytest_llmperf.hardware.clock import MS_PER_S
from pytest_llmperf.measure.warmup import requests_before_steady
from pytest_llmperf.metrics import Kind
from pytest_llmperf.stats.moderated_variance import Variance
from pytest_llmperf.stats.trimmed_mean import spread_around_zero
from pytest_llmperf.storage.requests_by_test import RequestCounts
from pytest_llmperf.storage.schema import CellRun, Warmup
from pytest_llmperf.verdict.model import CellKey

LEAST_REQUESTS = 3
"""With fewer, the median does not leave out a disturbed request."""

LARGEST_FACTOR = 2
"""The most requests, as a multiple of those of the first block."""

_MAD_TO_SD = 1.4826
_OF_MEDIAN = math.pi / 2
"""Variance of the median of normal figures, as a multiple of that of their mean."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Seconds of one test in one process: before its first timed request, and of each request."""

    overhead_s: float
    request_s: float


def request_counts(standing: Standing, blocks: Sequence[MeasuredBlock]) -> dict[str, RequestCounts]:
    """Return the numbers of requests of each undecided test; a test of which too little is known keeps its own.

    Args:
        standing: verdicts of the blocks so far.
        blocks: at least one.
    """
    timed, warmup = _timed_requests(standing, blocks), _warmup_requests(blocks[0])
    counts = {test: RequestCounts(timed=timed.get(test), warmup=warmup.get(test)) for test in standing.undecided}
    return {test: count for test, count in counts.items() if count != RequestCounts()}


def _timed_requests(standing: Standing, blocks: Sequence[MeasuredBlock]) -> dict[str, int]:
    found: dict[str, int] = {}
    undecided, rows = set(standing.undecided), _spread_rows(blocks)
    for pairs in standing.timed:
        test = pairs.key[0]
        if test in undecided and pairs.limit.gates:
            count = _count(pairs, rows[pairs.key], _variance(standing, pairs), _cost(pairs, blocks))
            found[test] = max(count or 0, found.get(test, 0))
    return {test: count for test, count in found.items() if count}


def _variance(standing: Standing, pairs: Pairs) -> Variance:
    """Return the variance of one block of a cell. A single block has none: all cells' changes in it stand for that."""
    if len(pairs.changes) != 1:
        return standing.variance(pairs)
    changes = [other.changes[0] for other in standing.timed if other.limit.gates and other.changes]
    return Variance(spread_around_zero(changes) ** 2, len(changes))


def _warmup_requests(block: MeasuredBlock) -> dict[str, int]:
    """Return the most requests that a process made before they were steady, for tests whose requests always were."""
    found: defaultdict[str, list[Warmup]] = defaultdict(list)
    for baseline in (block.arms[arm].baseline for arm in ARMS):
        for one in baseline.observations if baseline else []:
            found[one.test].append(one.warmup)
    steady = {test: made for test, made in found.items() if all(warmup.steady for warmup in made)}
    return {test: max(map(requests_before_steady, made)) for test, made in steady.items()}


def best_count(cost: Cost, *, within: float, between: float, first: int) -> int:
    """Return the number of requests with the least time to a precision.

    Args:
        cost: of the test.
        within: variance of ln(time) of one request within its process.
        between: variance of what differs between processes.
        first: requests of the first block.
    """
    most = LARGEST_FACTOR * first
    if between <= 0:
        return most
    best = math.sqrt(max(cost.overhead_s, 0.0) / cost.request_s * _OF_MEDIAN * within / between)
    return max(min(LEAST_REQUESTS, first), min(round(best), most))


def _count(pairs: Pairs, cells: Sequence[CellRun], of_block: Variance, cost: Cost | None) -> int | None:
    if pairs.metric.kind is not Kind.TIMED or not (cells and cost and of_block.df):
        return None
    within = sum((_MAD_TO_SD * (cell.mad_log or 0.0)) ** 2 for cell in cells) / len(cells)
    of_median = sum(_OF_MEDIAN * within / cell.count for cell in cells) / len(cells)
    first = cells[0].count
    best = best_count(cost, within=within, between=of_block.value / 2 - of_median, first=first)
    return min(best, first) if len(pairs.head) == 1 else best


def _spread_rows(blocks: Sequence[MeasuredBlock]) -> Mapping[CellKey, Sequence[CellRun]]:
    """Return the figures of all processes that have a spread, by cell."""
    found: defaultdict[CellKey, list[CellRun]] = defaultdict(list)
    for baseline in (block.arms[arm].baseline for block in blocks for arm in ARMS):
        for row in baseline.cells if baseline else []:
            if row.mad_log is not None and row.count > 1:
                found[row.key[:3]].append(row)
    return found


def _cost(pairs: Pairs, blocks: Sequence[MeasuredBlock]) -> Cost | None:
    """Estimate the cost from the last block. The overhead is shared; that of the first block includes counting."""
    arm = blocks[-1].arms["head"]
    spent = {key[:2]: value / MS_PER_S for key, value in arm.values.items() if key[2] == "e2e_ms" and _is_time(value)}
    if arm.baseline is None or pairs.key[:2] not in spent:
        return None
    made = {(one.test, one.workload): one.requests for one in arm.baseline.observations}
    timed_s = sum(seconds * made.get(workload, 0) for workload, seconds in spent.items())
    overhead_s = (blocks[-1].seconds / len(ARMS) - timed_s) / len(spent)
    return Cost(overhead_s=overhead_s, request_s=spent[pairs.key[:2]])


def _is_time(value: float | str | None) -> TypeGuard[float]:
    return isinstance(value, float | int) and value > 0
