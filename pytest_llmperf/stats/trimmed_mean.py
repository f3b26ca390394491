"""Where a handful of figures lie, and how sure that is: the mean of few, the trimmed mean of more.

A neighbour on the same machine slows one process in ten down by half, and says nothing about the code. From eight
figures on, the largest and the smallest fifth are left out of the mean and drawn in for its standard error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

TRIMMED = 0.2
"""The share of the figures that is left out at each end."""

FEWEST_TO_TRIM = 8
"""Of fewer, too few would be left."""


@dataclass(frozen=True)
class Location:
    """An estimate of the mean, its standard error, and that error's degrees of freedom."""

    mean: float
    se: float
    df: int

    @classmethod
    def of(cls, figures: Sequence[float], *, spread: float = 0.0) -> Location:
        """The mean, or from eight figures on the 20 % trimmed mean with the standard error of Yuen (1974).

        Args:
            figures: at least one; of a single one nothing is known of its error but ``spread``.
            spread: standard deviation below which the figures' own is not believed to be.
        """
        n, ordered = len(figures), sorted(figures)
        cut = int(TRIMMED * n) if n >= FEWEST_TO_TRIM else 0
        kept = ordered[cut : n - cut]
        drawn_in = [kept[0]] * cut + kept + [kept[-1]] * cut
        center = fmean(drawn_in)
        variance = math.fsum((figure - center) ** 2 for figure in drawn_in) / max(n - 1, 1)
        own = math.sqrt(variance) * n / len(kept)
        return cls(fmean(kept), max(own, spread) / math.sqrt(n), len(kept) - 1)


def spread_around_zero(figures: Sequence[float]) -> float:
    """The standard deviation of figures whose mean is known to be 0, wild ones trimmed as in a mean; 0 of none."""
    if len(figures) < FEWEST_TO_TRIM:
        return math.sqrt(fmean(figure**2 for figure in figures)) if figures else 0.0
    both = Location.of([*figures, *(-figure for figure in figures)])
    return both.se * math.sqrt(2 * len(figures))
