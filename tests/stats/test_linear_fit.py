"""A line through points."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.errors import MeasurementError
from pytest_llmperf.stats.linear_fit import fit_line

numbers = st.floats(-1e6, 1e6)
xs = st.lists(st.integers(1, 10**6), min_size=2, max_size=20, unique=True)


@given(xs, st.floats(-1e3, 1e3), numbers)
def test_points_on_a_line_give_that_line(x, slope, intercept):
    """R² is 1 where y varies by more than rounding."""
    y = [intercept + slope * one for one in x]
    line = fit_line(x, y)
    scale = max(1.0, *map(abs, y), abs(intercept))
    assert line.at(x[0]) == pytest.approx(y[0], abs=1e-9 * scale)
    assert line.at(x[-1]) == pytest.approx(y[-1], abs=1e-9 * scale)
    if len(x) > 2 and max(y) - min(y) > 1e-6 * scale:
        assert line.r_squared == pytest.approx(1.0)


@given(st.lists(st.tuples(st.integers(1, 1000), st.floats(-1e3, 1e3)), min_size=3, max_size=20), numbers, numbers)
def test_no_other_line_is_nearer(points, slope, intercept):
    """Least squares: any other line leaves at least as much."""
    x, y = zip(*points, strict=True)
    if len(set(x)) < 2:
        return
    line = fit_line(x, y)

    def left(at):
        return sum((b - at(a)) ** 2 for a, b in points)

    assert left(line.at) <= left(lambda a: intercept + slope * a) * (1 + 1e-9) + 1e-3
    if line.r_squared is not None:
        assert -1e-6 <= line.r_squared <= 1 + 1e-6


def test_by_hand():
    """The textbook's example of three points, and R² from its residuals."""
    line = fit_line([1, 2, 3], [1.0, 2.0, 2.0])
    assert (line.slope, line.intercept) == (pytest.approx(0.5), pytest.approx(2 / 3))
    assert line.r_squared == pytest.approx(0.75)


def test_two_points_are_a_difference_quotient():
    """They always lie on their line, so R² would say nothing."""
    line = fit_line([64, 1024], [6.0, 6.96])
    assert line.slope == pytest.approx(0.001)
    assert line.r_squared is None


def test_equal_figures_have_no_r_squared():
    """There is no variance to explain."""
    line = fit_line([1, 2, 3], [5.0, 5.0, 5.0])
    assert (line.slope, line.r_squared) == (0.0, None)


def test_one_x_is_no_line():
    """It is refused rather than divided by zero."""
    with pytest.raises(MeasurementError, match="1 different x: expected at least two"):
        fit_line([7, 7], [1.0, 2.0])
