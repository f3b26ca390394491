"""How much of an error probability each look at accumulating data may use.

Looking again and again at a growing sample finds something sooner or later. A spending function says how much of the
allowed error has been used up by each look; the nominal level of a look follows from it by numerical integration over
the paths that crossed no boundary before (Armitage, McPherson and Rowe 1969; Jennison and Turnbull, *Group Sequential
Methods*, 2000, chapters 7 and 19). The integration is that of normal data of known variance; its levels are applied to
p-values of t, which keeps the error of the whole near its nominal value (Jennison and Turnbull, section 4.4).
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
"""The share of the error that is used up once a share of the data, 0 to 1, has been seen."""

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(160)
_FAR = 9.0  # standard deviations beyond which nothing lies
_HALVINGS = 60
_HALF = 0.5


def late(share: float) -> float:
    """Spends late, where stopping early for the answer must take much: Hwang, Shih and DeCani 1990, gamma = -2."""
    return math.expm1(2 * share) / math.expm1(2)


def even(share: float) -> float:
    """Spends about evenly, so as to stop early: Lan and DeMets 1983, of the type of Pocock."""
    return math.log1p((math.e - 1) * share)


@lru_cache
def nominal_levels(total: float, looks: tuple[int, ...], spending: Spending) -> tuple[float, ...]:
    """The one-sided p-value that decides at each look, so that all of them together err with probability ``total``.

    Args:
        total: the error probability of the whole, 0 to 0.5.
        looks: sample sizes at which the data are looked at, rising.
        spending: how much of ``total`` is used up by when.

    Raises:
        ValueError: ``total`` is not between 0 and 0.5.
    """
    if not 0 < total < _HALF:
        raise ValueError(f"an error probability of {total}: expected one between 0 and 0.5")
    shares = [look / looks[-1] for look in looks]
    spent = [0.0, *(total * spending(share) for share in shares)]
    return tuple(_levels(shares, [after - before for before, after in pairwise(spent)]))


def _levels(shares: Sequence[float], increments: Sequence[float]) -> list[float]:
    """Nominal levels for Brownian motion that is seen at times ``shares`` and spends ``increments``."""
    paths = _Paths(np.zeros(1), np.ones(1), 0.0)
    levels = []
    for share, increment in zip(shares, increments, strict=True):
        boundary = paths.boundary(share, increment)
        levels.append(float(ndtr(-boundary / math.sqrt(share))))
        paths = paths.below(share, boundary)
    return levels


class _Paths:
    """Where the paths stand that crossed no boundary: points, the probability mass at each, and the time."""

    def __init__(self, points: NDArray[np.float64], mass: NDArray[np.float64], time: float) -> None:
        self.points, self.mass, self.time = points, mass, time

    def boundary(self, time: float, increment: float) -> float:
        """What a share ``increment`` of all paths exceeds at ``time``."""
        if len(self.points) == 1:
            return -float(ndtri(increment)) * math.sqrt(time)
        low, high = 0.0, _FAR * math.sqrt(time)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if self._beyond(middle, time) > increment else (low, middle)
        return high

    def below(self, time: float, boundary: float) -> _Paths:
        """The paths that are below ``boundary`` at ``time``."""
        bottom = -_FAR * math.sqrt(time)
        half, sd = (boundary - bottom) / 2, math.sqrt(time - self.time)
        points = bottom + half * (_NODES + 1)
        density = np.exp(-(((points[:, None] - self.points) / sd) ** 2) / 2) / (sd * math.sqrt(2 * math.pi))
        return _Paths(points, half * _WEIGHTS * (density @ self.mass), time)

    def _beyond(self, value: float, time: float) -> float:
        return float(ndtr((self.points - value) / math.sqrt(time - self.time)) @ self.mass)
