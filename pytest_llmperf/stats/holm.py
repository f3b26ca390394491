"""Holm's procedure: correct for multiple comparisons when several cells can fail one run."""

from __future__ import annotations

from collections.abc import Sequence


def holm_family_sizes(p_values: Sequence[float], *, size: int, alpha: float) -> list[int]:
    """Return, for each p-value, the number of hypotheses that Holm's procedure divides ``alpha`` by.

    Holm's procedure holds the i-th smallest p-value, counted from 0, to ``alpha / (size - i)`` and stops at the first
    that exceeds its level. The remaining p-values are held to that same level. If the family has hypotheses that are
    not in ``p_values``, the result can only be stricter than the full procedure.

    Args:
        p_values: one for each cell that may still fail.
        size: number of cells that could have failed the run, at least ``len(p_values)``.
        alpha: family-wise error rate.

    Source: Holm, A simple sequentially rejective multiple test procedure, 1979.
    """
    sizes = [size] * len(p_values)
    left = size
    for index in sorted(range(len(p_values)), key=p_values.__getitem__):
        sizes[index] = left
        if p_values[index] <= alpha / left:
            left = max(1, left - 1)
    return sizes
