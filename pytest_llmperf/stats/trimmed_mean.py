"""Mean and standard error of a few figures; 20 % trimmed at each end from eight figures on.

Other load on a machine slows one process in ten by half, whatever the code does. From eight figures on, the mean omits
the largest and the smallest fifth, and its standard error is computed from the winsorized variance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

TRIMMED = 0.2
"""Share of the figures trimmed at each end."""

FEWEST_TO_TRIM = 8
"""Minimum number of figures to trim; with fewer, too few would remain."""


@dataclass(frozen=True)
class Location:
    """An estimated mean, its standard error and its degrees of freedom."""

    mean: float
    se: float
    df: int

    @classmethod
    def of(cls, figures: Sequence[float], *, spread: float = 0.0) -> Location:
        """Return the mean, or from eight figures on the 20 % trimmed mean with Yuen's (1974) standard error.

        Args:
            figures: at least one. For a single figure, the standard error comes from ``spread`` alone.
            spread: lower limit of the standard deviation.
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
    """Return the standard deviation of figures with known mean 0; trimmed from eight on, 0 if empty."""
    if len(figures) < FEWEST_TO_TRIM:
        return math.sqrt(fmean(figure**2 for figure in figures)) if figures else 0.0
    both = Location.of([*figures, *(-figure for figure in figures)])
    return both.se * math.sqrt(2 * len(figures))
