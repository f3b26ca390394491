"""Mean of few figures, trimmed mean of more, and their standard errors."""

from __future__ import annotations

import math
from statistics import fmean, variance

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.stats.student_t import quantile
from pytest_llmperf.stats.trimmed_mean import FEWEST_TO_TRIM, Location, spread_around_zero

FIGURES = st.lists(st.floats(-10, 10), min_size=1, max_size=30)


def test_few_figures_have_a_plain_mean():
    """The standard error is that of a mean."""
    figures = [1.0, 2.0, 4.0, 9.0]
    found = Location.of(figures)
    assert (found.mean, found.df) == (fmean(figures), 3)
    assert found.se == pytest.approx(math.sqrt(variance(figures) / 4))


def test_more_are_trimmed():
    """Of ten figures, two are trimmed at each end, with Yuen's standard error and degrees of freedom."""
    figures = [-500.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 900.0]
    found = Location.of(figures)
    assert (found.mean, found.df) == (4.5, 5)
    drawn_in = [2, 2, 2, 3, 4, 5, 6, 7, 7, 7]
    assert found.se == pytest.approx(math.sqrt(variance(drawn_in)) / (0.6 * math.sqrt(10)))


@pytest.mark.parametrize("blocks", [8, 12, 16, 24])
def test_its_t_keeps_the_level(blocks):
    """Of 4,000 normal samples about 2.5 % exceed the 2.5 % point, hardly more with one outlier in ten figures."""
    rng = np.random.default_rng(blocks)
    for share in (0.0, 0.1):
        figures = rng.normal(0, 0.01, (4000, blocks))
        figures += (rng.random(figures.shape) < share) * 0.5 * rng.choice([-1, 1], figures.shape)
        found = [Location.of(list(row)) for row in figures]
        beyond = fmean(one.mean / one.se > quantile(0.025, one.df) for one in found)
        assert beyond < 0.04


def test_one_wild_figure_hardly_moves_many():
    """The size of the outlier does not matter."""
    calm = [0.01 * i for i in range(12)]
    wild = [*calm[:-1], 1e6]
    assert Location.of(wild).mean == pytest.approx(Location.of(calm).mean)
    assert Location.of(wild).se == pytest.approx(Location.of(calm).se)


@given(figures=FIGURES, shift=st.floats(-10, 10), spread=st.floats(0, 5))
def test_it_moves_with_the_figures(figures, shift, spread):
    """The order does not matter, and the standard error is at least that of the known spread."""
    found = Location.of(figures, spread=spread)
    moved = Location.of([figure + shift for figure in reversed(figures)], spread=spread)
    assert moved.mean == pytest.approx(found.mean + shift, abs=1e-9)
    assert moved.se == pytest.approx(found.se, abs=1e-6)
    assert found.se >= spread / math.sqrt(len(figures))
    assert min(figures) - 1e-9 <= found.mean <= max(figures) + 1e-9


def test_the_spread_around_zero():
    """Few figures give the root mean square; of more, outliers hardly count."""
    assert spread_around_zero([]) == 0
    assert spread_around_zero([0.03, -0.04]) == pytest.approx(math.sqrt(0.00125))
    rng = np.random.default_rng(3)
    figures = [*rng.normal(0, 0.01, 2000), *[3.0] * 100]
    assert spread_around_zero(figures) == pytest.approx(0.01, rel=0.25)
    assert len(figures) > FEWEST_TO_TRIM
