"""Stopping rule of a comparison: every test is decided, the budget is spent, or the last look was taken."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pytest_llmperf.ab.analysis import Standing
from pytest_llmperf.ab.blocks import BlockSeries, MeasuredBlock
from pytest_llmperf.ab.request_counts import request_counts
from pytest_llmperf.errors import UsageError
from pytest_llmperf.verdict.paired import LOOKS, next_look


@dataclass(frozen=True, kw_only=True)
class Effort:
    """Limits of measuring. ``deadline`` is a time of ``time.monotonic``, in seconds."""

    most_blocks: int = LOOKS[-1]
    deadline: float | None = None

    @property
    def left_s(self) -> float | None:
        """Seconds until the deadline; ``None`` if there is none."""
        return None if self.deadline is None else self.deadline - time.monotonic()

    def has_taken_all_looks(self, blocks: int) -> bool:
        """Whether no further block is wanted after so many: the limit or the last look is reached."""
        return blocks >= self.most_blocks or next_look(blocks) is None

    def is_spent(self, blocks: Sequence[MeasuredBlock]) -> bool:
        """Whether to stop: no further block is wanted, or one as long as the last would miss the deadline."""
        late = self.left_s is not None and self.left_s < blocks[-1].seconds
        return late or self.has_taken_all_looks(len(blocks))


def measure_until_decided(series: BlockSeries, effort: Effort) -> Iterator[Standing]:
    """Measure blocks, at least one in all, until every test is decided or the effort is spent.

    Args:
        series: of the two sides; its existing blocks count.
        effort: limits of measuring.

    Yields:
        The standing after each new block, and last the final one.

    Raises:
        UsageError: no test was selected on head, or a process left nothing to compare.
    """
    standing = Standing(series.blocks) if series.blocks else None
    while standing is None or (standing.undecided and not effort.is_spent(series.blocks)):
        if standing:
            counts = request_counts(standing, series.blocks)
            series.measure(standing.undecided, times_only=not standing.needs_exact, requests=counts)
        else:
            series.measure(())
        standing = Standing(series.blocks)
        if not standing.tests:
            raise UsageError("no perf test was selected on head: nothing to compare")
        yield standing
    yield Standing(series.blocks, final=True)
