"""Several cells can fail one run: how strict to be with each of them."""

from __future__ import annotations

from collections.abc import Sequence


def holm_family_sizes(p_values: Sequence[float], *, size: int, alpha: float) -> list[int]:
    """The number of hypotheses that each p-value is still one of when Holm's procedure comes to it.

    The i-th smallest is held to ``alpha / (size - i)`` while all before it met theirs; where one fails, the procedure
    stops, and all from there on are held to that step's level. Hypotheses of the family that are not among
    ``p_values`` can only make the true procedure less strict than this.

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
