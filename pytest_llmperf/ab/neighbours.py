"""Whether devices that measure side by side disturb each other, and whether they are of one kind.

The first pair of blocks runs alone on the first device. In the next step, all devices measure a pair each. The first
device has then measured the same code alone and beside others. What slows base and head equally cancels in their ratio,
but a neighbour may slow only a part of their work, so the blocks beside disturbing neighbours do not count.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from pytest_llmperf.ab.analysis import Pairs, Standing
from pytest_llmperf.ab.blocks import PAIR, MeasuredBlock
from pytest_llmperf.errors import UsageError
from pytest_llmperf.metrics import Kind
from pytest_llmperf.stats.moderated_variance import UNKNOWN, Variance, typical_variance
from pytest_llmperf.stats.student_t import upper_tail
from pytest_llmperf.verdict.model import percent
from pytest_llmperf.verdict.paired import Block, block_variance
from pytest_llmperf.verdict.window_stats import oriented

ALONE = PAIR
"""Number of blocks that the first device measures before the others begin: a mirrored pair."""

_LEAST_INVALID = 0.5
"""Share of the blocks beside others whose timings of a test are invalid: one may be chance."""


_SIDES: Mapping[str, tuple[str, ...]] = {" (base)": ("base",), " (head)": ("head",), "": ("base", "head")}
"""The sides that are compared, one and both: a neighbour may disturb only the one that computes more."""


class _Slowdown(NamedTuple):
    pairs: Pairs
    where: str
    mean: float
    """Mean of ln(value beside others) - ln(value alone), more being worse."""
    p_value: float


@dataclass(frozen=True)
class _Cell:
    """A cell's blocks on the first device."""

    pairs: Pairs
    alone: Sequence[Block]
    others: Sequence[Block]

    @property
    def variance(self) -> Variance:
        """Variance of a block, from blocks in the same state: a change of the ratio beside others is not noise."""
        alone, others = (block_variance(self.pairs.metric, blocks) for blocks in (self.alone, self.others))
        return alone.pooled(others)

    def slowdowns(self, typical: Variance) -> Iterator[_Slowdown]:
        """Yield the slowdown of each side and of both."""
        variance, margin = self.variance.pooled(typical), math.log1p(self.pairs.limit.tolerate)
        if not variance.df:
            return
        for where, sides in _SIDES.items():
            mean = self._level(self.others, sides) - self._level(self.alone, sides)
            # The variance is that of the difference of two processes: half of it is that of one.
            of_process = variance.sd / math.sqrt(2)
            counts = (len(sides) * len(blocks) for blocks in (self.others, self.alone))
            se = of_process * math.sqrt(sum(1 / count for count in counts))
            yield _Slowdown(self.pairs, where, mean, upper_tail((mean - margin) / se, variance.df))

    def _level(self, blocks: Sequence[Block], sides: Sequence[str]) -> float:
        return fmean(oriented(self.pairs.metric, getattr(block, side)) for block in blocks for side in sides)


def disturbance(blocks: Sequence[MeasuredBlock]) -> str:
    """Return how devices disturb each other; empty if they do not, or if that is not known yet.

    It depends only on the first pair, which ran alone, and on the first step side by side, so it does not change later.
    A gating timed metric of the first device that is slower beside others than alone by more than ``tolerate`` counts,
    on base, on head or on both, in one-sided t tests whose error over all cells is that of a verdict. So do the guards,
    if they reject half or more of a test's timings beside others and none alone.

    Args:
        blocks: in the order of their numbers, without a gap.
    """
    alone, step = blocks[:ALONE], _first_step(blocks)
    if not step:
        return ""
    return _rejected(alone, step) or _slower(blocks[: ALONE + PAIR])


def refuse_other_kinds(blocks: Sequence[MeasuredBlock]) -> None:
    """Reject devices of different kinds.

    Raises:
        UsageError: a device is of another kind than the first one.
    """
    found = {block.device: arm.baseline.device_key for block in blocks for arm in block.arms.values() if arm.baseline}
    first, *others = found or [""]
    for device in others:
        if found[device] != found[first]:
            told = f"{device} is {found[device]}, and {first} is {found[first]}"
            raise UsageError(f"--device: {told}: expected devices of one kind")


def _first_step(blocks: Sequence[MeasuredBlock]) -> list[MeasuredBlock]:
    """Return the blocks of the first step side by side, once it is complete."""
    begun = blocks[ALONE : ALONE + 1]
    count = PAIR * (begun[0].beside + 1) if begun and begun[0].beside else 0
    step = blocks[ALONE : ALONE + count]
    return [block for block in step if block.beside] if len(step) == count else []


def _rejected(alone: Sequence[MeasuredBlock], step: Sequence[MeasuredBlock]) -> str:
    sound, found = _invalid(alone), _invalid(step)
    for test, whys in found.items():
        if test not in sound and len(whys) >= _LEAST_INVALID * len(step):
            return f"timings of {test} are invalid beside others, and not alone: {whys[0]}"
    return ""


def _invalid(blocks: Sequence[MeasuredBlock]) -> dict[str, list[str]]:
    """Return why each test's timings are invalid: one reason for each block in which they are."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for block in blocks:
        why = {test: reason for arm in block.arms.values() for (test, _, _), reason in arm.invalid.items()}
        for test, reason in why.items():
            found[test].append(reason)
    return found


def _slower(blocks: Sequence[MeasuredBlock]) -> str:
    standing, beside = Standing(blocks), {block.number for block in blocks if block.beside}
    cells = list(_cells(standing, beside))
    typical = typical_variance(cell.variance for cell in cells) or UNKNOWN
    found = [slowdown for cell in cells for slowdown in cell.slowdowns(typical)]
    worst = min(found, key=lambda one: one.p_value, default=None)
    if worst is None or worst.p_value > standing.alpha / len(_SIDES):
        return ""
    metric, test = worst.pairs.metric, worst.pairs.key[0]
    change = percent(abs(math.expm1(metric.better.sign * worst.mean)))
    return f"{metric.title} of {test} is {change} worse beside others than alone{worst.where}"


def _cells(standing: Standing, beside: set[int]) -> Iterator[_Cell]:
    for pairs in standing.timed:
        if pairs.metric.kind is Kind.TIMED and pairs.limit.gates and pairs.variance.df:
            blocks = list(zip(pairs.numbers, pairs.blocks, strict=True))
            others = [block for number, block in blocks if number in beside]
            alone = [block for number, block in blocks if number not in beside]
            if alone and others:
                yield _Cell(pairs, alone, others)
