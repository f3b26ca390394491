"""Whether devices that measure side by side disturb each other, and whether they are of one kind.

The first pair of blocks runs alone on the first device. In the next step, all devices measure a pair each. The first
device has then measured the same code alone and beside others. What slows base and head equally cancels in their ratio,
so the verdicts stay valid; but their figures are no longer those of an undisturbed machine, and noise grows.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import NamedTuple

from pytest_llmperf.ab.analysis import Pairs, Standing
from pytest_llmperf.ab.blocks import MeasuredBlock
from pytest_llmperf.errors import UsageError
from pytest_llmperf.metrics import Kind
from pytest_llmperf.stats.student_t import SD_FLOOR, upper_tail
from pytest_llmperf.verdict.model import percent
from pytest_llmperf.verdict.window_stats import oriented

ALONE = 2
"""Number of blocks that the first device measures before the others begin: a mirrored pair."""

_PAIR = 2
_LEAST_INVALID = 0.5
"""Share of the blocks beside others whose timings of a test are invalid: one may be chance."""


class _Slowdown(NamedTuple):
    pairs: Pairs
    mean: float
    """Mean of ln(value beside others) - ln(value alone), more being worse."""
    p_value: float


def disturbance(blocks: Sequence[MeasuredBlock]) -> str:
    """Return how devices disturb each other; empty if they do not, or if that is not known yet.

    It depends only on the first pair, which ran alone, and on the first step side by side, so it does not change later.
    A gating timed metric of the first device that is slower beside others than alone by more than ``tolerate`` counts,
    in a one-sided t test whose error over all cells is that of a verdict. So do the guards, if they reject half or
    more of a test's timings beside others and none alone.

    Args:
        blocks: in the order of their numbers, without a gap.
    """
    alone, step = blocks[:ALONE], _first_step(blocks)
    if not step:
        return ""
    return _rejected(alone, step) or _slower(blocks[: ALONE + _PAIR])


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
    count = _PAIR * (begun[0].beside + 1) if begun and begun[0].beside else 0
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
    standing = Standing(blocks)
    found = list(_slowdowns(standing, {block.number for block in blocks if block.beside}))
    if not found:
        return ""
    worst = min(found, key=lambda one: one.p_value)
    if worst.p_value > standing.alpha:
        return ""
    pairs, change = worst.pairs, percent(abs(math.expm1(worst.pairs.metric.better.sign * worst.mean)))
    return f"{pairs.metric.title} of {pairs.key[0]} is {change} worse beside others than alone"


def _slowdowns(standing: Standing, beside: set[int]) -> Iterator[_Slowdown]:
    for pairs in standing.timed:
        variance = standing.variance(pairs)
        alone = [level for number, level in _levels(pairs) if number not in beside]
        others = [level for number, level in _levels(pairs) if number in beside]
        if alone and others and variance.df and pairs.limit.gates:
            mean = fmean(others) - fmean(alone)
            # The variance is that of the difference of two processes: that of their mean is a quarter of it.
            se = max(math.sqrt(variance.value), SD_FLOOR) / 2 * math.sqrt(1 / len(others) + 1 / len(alone))
            margin = math.log1p(pairs.limit.tolerate)
            yield _Slowdown(pairs, mean, upper_tail((mean - margin) / se, variance.df))


def _levels(pairs: Pairs) -> Iterator[tuple[int, float]]:
    """Yield the number of each block and the mean of ln(base) and ln(head), more being worse; none if not timed."""
    if pairs.metric.kind is not Kind.TIMED or not pairs.variance.df:
        return
    for number, block in zip(pairs.numbers, pairs.blocks, strict=True):
        yield number, fmean(oriented(pairs.metric, value) for value in (block.base, block.head))
