"""Alpha spending for group sequential tests: the nominal p-value level of each interim look.

Repeated tests of accumulating data inflate the error rate. A spending function fixes the share of the total error that
each look may use. The nominal level of a look follows by numerical integration over the paths that crossed no earlier
boundary (Armitage, McPherson and Rowe 1969; Jennison and Turnbull, *Group Sequential Methods*, 2000, chapters 7 and
19). The integration assumes normal data of known variance. Applying its levels to p-values of t keeps the overall error
near its nominal value (Jennison and Turnbull, section 4.4).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

Spending = Callable[[float], float]
"""Cumulative share of the error that is spent at an information fraction from 0 to 1."""

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(160)
_FAR = 9.0  # integration limit in standard deviations; the mass beyond is negligible
_HALVINGS = 60
_HALF = 0.5


def late(share: float) -> float:
    """Spend late, so that an early stop needs strong evidence: Hwang, Shih and DeCani 1990, gamma = -2."""
    return math.expm1(2 * share) / math.expm1(2)


def even(share: float) -> float:
    """Spend about evenly, so that early stops are likely: the Pocock-type function of Lan and DeMets 1983."""
    return math.log1p((math.e - 1) * share)


@lru_cache
def nominal_levels(total: float, looks: tuple[int, ...], spending: Spending) -> tuple[float, ...]:
    """Return the one-sided p-value threshold of each look, for an overall error probability of ``total``.

    Args:
        total: overall error probability, 0 to 0.5.
        looks: sample sizes at which the data are tested, increasing.
        spending: the spending function.

    Raises:
        ValueError: ``total`` is not between 0 and 0.5.
    """
    if not 0 < total < _HALF:
        raise ValueError(f"an error probability of {total}: expected one between 0 and 0.5")
    shares = [look / looks[-1] for look in looks]
    spent = [0.0, *(total * spending(share) for share in shares)]
    return tuple(_levels(shares, [after - before for before, after in pairwise(spent)]))


def _levels(shares: Sequence[float], increments: Sequence[float]) -> list[float]:
    """Return nominal levels for Brownian motion observed at times ``shares`` that spends ``increments``."""
    paths = _Paths(np.zeros(1), np.ones(1), 0.0)
    levels = []
    for share, increment in zip(shares, increments, strict=True):
        boundary = paths.boundary(share, increment)
        levels.append(float(ndtr(-boundary / math.sqrt(share))))
        paths = paths.below(share, boundary)
    return levels


class _Paths:
    """Density of the paths that crossed no boundary yet: grid points, probability mass at each, and the time."""

    def __init__(self, points: NDArray[np.float64], mass: NDArray[np.float64], time: float) -> None:
        self.points, self.mass, self.time = points, mass, time

    def boundary(self, time: float, increment: float) -> float:
        """Return the value at ``time`` above which the remaining paths have probability mass ``increment``."""
        if len(self.points) == 1:
            return -float(ndtri(increment)) * math.sqrt(time)
        low, high = 0.0, _FAR * math.sqrt(time)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if self._beyond(middle, time) > increment else (low, middle)
        return high

    def below(self, time: float, boundary: float) -> _Paths:
        """Return the paths that are below ``boundary`` at ``time``."""
        bottom = -_FAR * math.sqrt(time)
        half, sd = (boundary - bottom) / 2, math.sqrt(time - self.time)
        points = bottom + half * (_NODES + 1)
        density = np.exp(-(((points[:, None] - self.points) / sd) ** 2) / 2) / (sd * math.sqrt(2 * math.pi))
        return _Paths(points, half * _WEIGHTS * (density @ self.mass), time)

    def _beyond(self, value: float, time: float) -> float:
        return float(ndtr((self.points - value) / math.sqrt(time - self.time)) @ self.mass)
