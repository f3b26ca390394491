"""Devices as a factor of a paired comparison: whether a change is the same on each of them.

Both processes of a block run on one device, so the device's own level cancels in their ratio. If the ratio itself
depends on the device, its mean over all blocks is the change on none of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from pytest_llmperf.metrics import Limit, Metric
from pytest_llmperf.stats.moderated_variance import UNKNOWN, Variance
from pytest_llmperf.stats.student_t import bounded_exp, upper_tail
from pytest_llmperf.verdict.paired import ALPHA, Block, block_variance, change

_TWO_SIDED = 2


def device_difference(
    metric: Metric,
    limit: Limit,
    blocks: Mapping[str, Sequence[Block]],
    alpha: float = ALPHA,
    *,
    typical: Variance = UNKNOWN,
) -> str:
    """Return a sentence if head / base on one device differs from that on the others beyond ``limit.tolerate``.

    Each device's mean of ln(head / base) is compared with that of the other devices in a two-sided t test. The
    variance is that of blocks of the same device, so that a device that differs does not hide itself.

    Args:
        metric: of the cell.
        limit: of the cell.
        blocks: of each device; each figure a number above 0.
        alpha: error probability of this cell, over all devices.
        typical: variance of a block that the cells of the comparison have in common.

    Returns:
        The sentence; empty if no difference is shown.
    """
    if len(blocks) == 1:
        return ""
    variance = typical
    for found in blocks.values():
        variance = variance.pooled(block_variance(metric, found))
    tests = {device: _p_value(metric, limit, blocks, device, variance) for device in blocks}
    odd = min(tests, key=lambda device: tests[device])
    return _sentence(metric, blocks, odd) if tests[odd] <= alpha / len(blocks) else ""


def _p_value(
    metric: Metric, limit: Limit, blocks: Mapping[str, Sequence[Block]], device: str, variance: Variance
) -> float:
    own, others = _changes(metric, blocks, device)
    if not variance.df:
        return 1.0
    se = variance.sd * math.sqrt(1 / len(own) + 1 / len(others))
    beyond = abs(fmean(own) - fmean(others)) - math.log1p(limit.tolerate)
    return _TWO_SIDED * upper_tail(beyond / se, variance.df)


def _changes(metric: Metric, blocks: Mapping[str, Sequence[Block]], device: str) -> tuple[list[float], list[float]]:
    """Return ln(head / base), more being worse, of the blocks of one device and of all others."""
    own = [change(metric, block) for block in blocks[device]]
    others = [change(metric, block) for other, found in blocks.items() if other != device for block in found]
    return own, others


def _sentence(metric: Metric, blocks: Mapping[str, Sequence[Block]], odd: str) -> str:
    own, others = (bounded_exp(metric.better.sign * fmean(found)) for found in _changes(metric, blocks, odd))
    return f"the change differs between devices: ×{own:.3f} on {odd}, ×{others:.3f} elsewhere"
