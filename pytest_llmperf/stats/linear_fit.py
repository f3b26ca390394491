"""Straight line through points, by least squares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from pytest_llmperf.errors import MeasurementError


@dataclass(frozen=True)
class Line:
    """``intercept + slope * x``."""

    intercept: float
    """In the unit of y."""
    slope: float
    """In the unit of y per unit of x."""
    r_squared: float | None
    """Share of the variance of y that the line explains; ``None`` where it is not defined: two points, or equal y."""

    def at(self, x: float) -> float:
        """Return the line's y at x."""
        return self.intercept + self.slope * x


def fit_line(x: Sequence[float], y: Sequence[float]) -> Line:
    """Fit a line by least squares; with two points it is the difference quotient.

    Raises:
        MeasurementError: fewer than two different x.
    """
    if len(set(x)) < 2:  # noqa: PLR2004  # a line
        raise MeasurementError(f"cannot fit a line to {len(set(x))} different x: expected at least two")
    middle_x, middle_y = fmean(x), fmean(y)
    off_x, off_y = [one - middle_x for one in x], [one - middle_y for one in y]
    slope = _product(off_x, off_y) / _product(off_x, off_x)
    line = Line(middle_y - slope * middle_x, slope, None)
    whole = _product(off_y, off_y)
    if len(x) < 3 or not whole:  # noqa: PLR2004  # two points are on their line
        return line
    left = [b - line.at(a) for a, b in zip(x, y, strict=True)]
    return Line(line.intercept, slope, 1 - _product(left, left) / whole)


def _product(left: Sequence[float], right: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))
