"""Guards of the paired t test: reject significant results whose assumptions do not hold.

The test assumes independent blocks, no effect of which side ran first, and a mean that represents most blocks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean, median

from scipy.special import ndtr

from pytest_llmperf.stats.student_t import SD_FLOOR, upper_tail
from pytest_llmperf.verdict.model import percent

LEAST_AGREEMENT = 0.75
"""Minimum share of blocks that changed in the direction of the mean."""

LARGEST_AUTOCORRELATION = 0.4

GUARD_P = 0.05
"""Significance level of a drift and of an order effect."""


def doubt(differences: Sequence[float], base_first: Sequence[bool], margin: float) -> str:
    """Return why a significant change for the worse is rejected; empty if it is accepted.

    Args:
        differences: ln(head / base) of each block in the order in which they ran, more is worse.
        base_first: whether base ran before head, for each block.
        margin: the tolerated change for the worse, in logarithms.
    """
    if median(differences) <= margin / 2:
        return "driven by a few blocks: the median change is within half the margin"
    if fmean([difference > 0 for difference in differences]) < LEAST_AGREEMENT:
        return f"fewer than {LEAST_AGREEMENT:.0%} of the blocks agree"
    if _drifts(differences):
        return "drift: neighbouring blocks are correlated"
    return _order_effect(differences, base_first, margin)


def _drifts(differences: Sequence[float]) -> bool:
    """Return whether the lag-1 autocorrelation is large and significant.

    For n independent blocks it is approximately normal around -1/n with variance 1/n (Bartlett 1946): of eight blocks,
    one series in fourteen exceeds 0.4 by chance. Only a positive autocorrelation makes the standard error too small.
    """
    n, mean = len(differences), fmean(differences)
    deviations = [difference - mean for difference in differences]
    squares = math.fsum(x * x for x in deviations)
    if squares <= n * SD_FLOOR**2:
        return False
    lag1 = math.fsum(x * y for x, y in pairwise(deviations)) / squares
    return lag1 >= LARGEST_AUTOCORRELATION and float(ndtr(-(lag1 + 1 / n) * math.sqrt(n))) < GUARD_P


def _order_effect(differences: Sequence[float], base_first: Sequence[bool], margin: float) -> str:
    """Return an order effect that exceeds the margin and is significant, or is unknown; empty if there is none.

    With four blocks that spread by 3 %, the means of the two orders differ by more than a margin of 2 % half of the
    time. So a t test of the two means must also be significant.
    """
    orders = [[d for d, first in zip(differences, base_first, strict=True) if first == side] for side in (True, False)]
    if not all(orders):
        return "every block ran in the same order: the cost of running second is unknown"
    means = [fmean(order) for order in orders]
    gap, df = abs(means[0] - means[1]), len(differences) - 2
    squares = math.fsum((d - mean) ** 2 for order, mean in zip(orders, means, strict=True) for d in order)
    se = max(math.sqrt(squares / df), SD_FLOOR) * math.sqrt(sum(1 / len(order) for order in orders))
    if gap > margin and 2 * upper_tail(gap / se, df) < GUARD_P:
        return f"order effect: the change differs by {percent(gap)} depending on the side that ran first"
    return ""
