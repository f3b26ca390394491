"""Noisy binary search: find the first bad one of ordered candidates by comparisons that scatter.

A comparison of a candidate with the good side gives a difference in ln(value). Its mean is 0 before the first bad
candidate, and one unknown step from there on. The search keeps a belief: the posterior probability of each candidate to
be the first bad one. It compares where the belief is divided in half, which is Horstein's (1963) rule, and updates the
belief by Bayes' theorem (Waeber, Frazier and Henderson 2013). No comparison decides alone: later ones outvote a wrong
one.

The step and the spread of the differences are unknown too: the likelihood is averaged over both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pytest_llmperf.stats.student_t import SD_FLOOR
from pytest_llmperf.stats.trimmed_mean import Location

ENOUGH = 0.95
"""Belief in one candidate that ends the search."""

OUTLIERS, WIDER = 0.1, 10.0
"""Assumed share of outlying differences, and their standard deviation in those of the others.

Other load on a machine slows one process in ten. Without such a share, one spike would outweigh many comparisons.
"""

FEWEST_OF_THE_LAST = 2
"""Minimum number of differences of the last candidate: they show the size of the step."""

_ROUNDING = 1e-9
_LARGEST_SPREAD = 0.5
_SPREADS = 24
_STEPS, _STEP_REACH = 25, 6.0
"""Points of the step's grid, and its reach in standard errors of the last candidate's mean."""

_Array = NDArray[np.float64]


class NoisyBisection:
    """A search that is fed with differences; it measures nothing itself.

    Args:
        candidates: their number. The last one is known to be bad.
    """

    def __init__(self, candidates: int) -> None:
        self._differences: list[list[float]] = [[] for _ in range(candidates)]
        self._skipped: set[int] = set()

    def add(self, candidate: int, differences: Sequence[float]) -> None:
        """Add differences of a candidate from the good side, in ln(value); above 0 is worse."""
        self._differences[candidate] += differences
        self.__dict__.pop("belief", None)

    def skip(self, candidate: int) -> None:
        """Do not ask for a candidate again, since it cannot be compared. It may still be the first bad one.

        Raises:
            ValueError: it is the last one, which is known to be bad.
        """
        if candidate == len(self._differences) - 1:
            raise ValueError("the last candidate cannot be skipped")
        self._skipped.add(candidate)

    @cached_property
    def belief(self) -> list[float]:
        """Probability of each candidate to be the first bad one; the sum is 1.

        Raises:
            ValueError: the last candidate has too few differences, or they are not worse on average.
        """
        return first_bad_belief(self._differences)

    @property
    def next(self) -> int | None:
        """The candidate to compare next: its answer halves the belief best. ``None`` if none is left to ask."""
        below = np.cumsum(self.belief)
        asked = [one for one in self._open if one != len(self._differences) - 1]
        order = [(round(abs(float(below[one]) - 0.5), 9), len(self._differences[one]), one) for one in asked]
        return min(order)[-1] if order else None

    @property
    def found(self) -> range | None:
        """The first bad candidate, once the belief in it is `ENOUGH`.

        It is a range of several if skipped candidates are among them, which no comparison can tell apart.
        """
        likeliest = max(self._groups, key=self.share)
        return likeliest if self.share(likeliest) >= ENOUGH else None

    @property
    def likely(self) -> range:
        """The shortest range of neighbours that together have a belief of `ENOUGH`."""
        groups = self._groups
        below = np.cumsum([0.0, *map(self.share, groups)])
        ends = np.searchsorted(below, below[:-1] + ENOUGH - _ROUNDING)
        ranges = [
            range(one.start, groups[end - 1].stop) for one, end in zip(groups, ends, strict=True) if end < len(below)
        ]
        return min(ranges, key=lambda one: (len(one), -self.share(one)))

    def share(self, candidates: range) -> float:
        """Return the belief that one of these is the first bad candidate."""
        return math.fsum(self.belief[candidates.start : candidates.stop])

    @property
    def _open(self) -> list[int]:
        return [one for one in range(len(self._differences)) if one not in self._skipped]

    @property
    def _groups(self) -> list[range]:
        """Each candidate that can be asked, with the skipped ones before it: only together can they be told apart."""
        ends = self._open
        return [range(before + 1, end + 1) for before, end in zip([-1, *ends], ends, strict=False)]


def first_bad_belief(differences: Sequence[Sequence[float]]) -> list[float]:
    """Return the probability of each candidate to be the first bad one.

    All are equally probable at first. The likelihood is that of normal differences with some outliers, averaged over
    a grid of spreads (uniform in ln, Jeffreys' prior) and a grid of steps around the last candidate's mean.

    Args:
        differences: from the good side in ln(value), of each candidate; above 0 is worse.

    Raises:
        ValueError: the last candidate has too few differences, or they are not worse on average.
    """
    spreads = np.geomspace(SD_FLOOR, _LARGEST_SPREAD, _SPREADS)[:, None]
    steps = _steps(differences[-1])[None, :]
    good = [_log_likelihood(one, np.zeros_like(steps), spreads) for one in differences]
    bad = [_log_likelihood(one, steps, spreads) for one in differences]
    before = np.cumsum([np.zeros_like(good[0]), *good[:-1]], axis=0)
    after = np.cumsum(bad[::-1], axis=0)[::-1]
    joint = before + after
    weights = np.exp(joint - joint.max()).sum(axis=(1, 2))
    return [float(weight) for weight in weights / weights.sum()]


def _steps(last: Sequence[float]) -> _Array:
    if len(last) < FEWEST_OF_THE_LAST:
        raise ValueError(f"{len(last)} differences of the last candidate: expected at least {FEWEST_OF_THE_LAST}")
    found = Location.of(last, spread=SD_FLOOR)
    steps = found.mean + found.se * np.linspace(-_STEP_REACH, _STEP_REACH, _STEPS)
    if not (positive := steps[steps > 0]).size:
        raise ValueError("the last candidate is not worse than the good side")
    return np.asarray(positive, np.float64)


def _log_likelihood(differences: Sequence[float], step: _Array, spreads: _Array) -> _Array:
    """Return the log likelihood of a candidate's differences, for each spread and step, without constants."""
    distance = (np.asarray(differences, np.float64)[:, None, None] - step) / spreads
    usual = math.log(1 - OUTLIERS) - distance**2 / 2
    outlying = math.log(OUTLIERS / WIDER) - (distance / WIDER) ** 2 / 2
    densities: _Array = np.logaddexp(usual, outlying) - np.log(spreads)
    return np.asarray(densities.sum(axis=0), np.float64)
