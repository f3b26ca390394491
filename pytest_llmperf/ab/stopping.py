"""Stopping rule of a comparison: every test is decided, the budget is spent, or the last look was taken."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pytest_llmperf.ab.analysis import Standing
from pytest_llmperf.ab.blocks import PAIR, BlockSeries, MeasuredBlock
from pytest_llmperf.ab.neighbours import ALONE, disturbance, refuse_other_kinds
from pytest_llmperf.ab.request_counts import request_counts
from pytest_llmperf.errors import UsageError
from pytest_llmperf.verdict.paired import LOOKS, next_look


@dataclass(frozen=True, kw_only=True)
class Effort:
    """Limits of measuring. ``deadline`` is a time of ``time.monotonic``, in seconds."""

    most_blocks: int = LOOKS[-1]
    deadline: float | None = None

    @classmethod
    def from_now(cls, most_blocks: int, budget_s: float | None) -> Effort:
        """The limits of a comparison that begins now; ``budget_s`` is ``None`` for no deadline."""
        return cls(most_blocks=most_blocks, deadline=None if budget_s is None else time.monotonic() + budget_s)

    @property
    def left_s(self) -> float | None:
        """Seconds until the deadline; ``None`` if there is none."""
        return None if self.deadline is None else self.deadline - time.monotonic()

    def has_taken_all_looks(self, blocks: int) -> bool:
        """Whether no further block is wanted after so many: the limit or the last look is reached."""
        return blocks >= self.most_blocks or next_look(blocks) is None

    def is_spent(self, blocks: Sequence[MeasuredBlock], *, in_turn: int = 1) -> bool:
        """Whether to stop: no further block is wanted, or ``in_turn`` as long as the last would miss the deadline."""
        late = self.left_s is not None and self.left_s < in_turn * blocks[-1].seconds
        return late or self.has_taken_all_looks(len(blocks))


def measure_until_decided(series: BlockSeries, effort: Effort) -> Iterator[Standing]:
    """Measure blocks, at least one in all, until every test is decided or the effort is spent.

    Args:
        series: of the two sides; its existing blocks count.
        effort: limits of measuring.

    Yields:
        The standing after each new block, and last the final one.

    Raises:
        UsageError: no test was selected on head, a process left nothing to compare, or devices are of different kinds.
    """
    refuse_other_kinds(series.blocks)
    standing = Standing(series.blocks) if series.blocks else None
    while standing is None or (standing.undecided and not _is_spent(series, effort)):
        if standing:
            _measure_more(series, standing, effort)
        else:
            series.measure(())
        refuse_other_kinds(series.blocks)
        standing = Standing(series.blocks)
        if not standing.tests:
            raise UsageError("no perf test was selected on head: nothing to compare")
        yield standing
    yield Standing(series.blocks, final=True)


def _measure_more(series: BlockSeries, standing: Standing, effort: Effort) -> None:
    """Measure the next block, or the next pair on each device if they do not disturb each other."""
    tests, times_only = standing.undecided, not standing.needs_exact
    counts = request_counts(standing, series.blocks)
    if _is_side_by_side(series):
        most = min(effort.most_blocks, LOOKS[-1])
        series.measure_side_by_side(tests, most=most, times_only=times_only, requests=counts)
        if disturbed := disturbance(series.blocks):
            series.fall_back(disturbed)
    else:
        series.measure(tests, times_only=times_only, requests=counts)


def _is_side_by_side(series: BlockSeries) -> bool:
    return len(series.lanes) > 1 and len(series.blocks) >= ALONE and not series.disturbed


def _is_spent(series: BlockSeries, effort: Effort) -> bool:
    return effort.is_spent(series.blocks, in_turn=PAIR if _is_side_by_side(series) else 1)
