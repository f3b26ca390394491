"""Prior variance of a metric, estimated from its cells."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import polygamma
from verdict_cells import make_cell

from pytest_llmperf.stats.moderated_variance import DF_CAP, Variance, _inverse_trigamma
from pytest_llmperf.stats.student_t import SD_FLOOR
from pytest_llmperf.verdict.prior import DEFAULT_NOISE, DEFAULT_PRIOR, Prior, fit_prior, prior_of

SEED = 20240607


def simulated(cells: int, *, sd: float, df0: float, df: int) -> list[tuple[float, float]]:
    """Return sample variances whose true variances are scaled inverse chi-square, as the method assumes."""
    rng = np.random.default_rng(SEED)
    true = sd**2 * df0 / rng.chisquare(df0, cells)
    return [(float(value), df) for value in true * rng.chisquare(df, cells) / df]


@pytest.mark.parametrize(("sd", "df0"), [(0.01, 4.0), (0.02, 10.0)])
def test_recovers_known_parameters(sd: float, df0: float) -> None:
    """From 2000 simulated cells of 6 sessions, the fit recovers the variance and its degrees of freedom."""
    prior = fit_prior(simulated(2000, sd=sd, df0=df0, df=5))
    assert prior.variance == pytest.approx(sd**2, rel=0.1)
    assert prior.df == pytest.approx(df0, rel=0.25)
    assert not prior.assumed


def test_equal_cells_are_capped() -> None:
    """Cells that differ by no more than chance get at most 30 degrees of freedom."""
    assert fit_prior([(1e-4, 5.0)] * 12).df == DF_CAP
    assert fit_prior(simulated(2000, sd=0.01, df0=100, df=30)).df == DF_CAP


def test_zero_variances_are_floored() -> None:
    """Cells without spread give a prior near the floor, and no division by zero."""
    prior = fit_prior([(0.0, 4.0)] * 6)
    assert 0.5 * SD_FLOOR**2 < prior.variance < 2 * SD_FLOOR**2


@pytest.mark.parametrize("variances", [[], [(1e-4, 4.0)] * 4, [(1e-4, 1.0)] * 50, [(1e-4, 4.0)] * 4 + [(1e-4, 1.0)]])
def test_too_few_cells_leave_the_assumption(variances: list[tuple[float, float]]) -> None:
    """Fewer than five cells of three sessions give the default prior."""
    assert fit_prior(variances) == DEFAULT_PRIOR


def test_order_of_cells_does_not_matter() -> None:
    """The fit does not depend on the order of the cells."""
    variances = simulated(20, sd=0.01, df0=5, df=3)
    assert fit_prior(variances[::-1]) == fit_prior(variances)


def test_prior_of_one_session_learns_the_noise_alone() -> None:
    """Cells of one session keep the assumed variance between sessions, and pool their run-to-run noise."""
    cells = [make_cell(4.0, [4.0, 4.1, 4.2, 4.3, 4.4 + i / 10]) for i in range(6)]
    prior = prior_of(cells)
    assert (prior.variance, prior.df, prior.assumed) == (DEFAULT_PRIOR.variance, DEFAULT_PRIOR.df, True)
    assert prior.noise is not None
    assert 0.02**2 < prior.noise.variance < 0.08**2
    assert (prior.noise.df > 4, prior.noise.assumed) == (True, False)


def test_prior_of_many_sessions_learns_both() -> None:
    """Cells of several sessions of several runs give both variances."""
    rng = np.random.default_rng(SEED)
    cells = []
    for _ in range(40):
        drift = rng.normal(0, 0.02, (6, 1))
        cells.append(make_cell(4.0, *(4 * np.exp(drift + rng.normal(0, 0.01, (6, 2)))).tolist()))
    prior = prior_of(cells)
    assert prior.variance == pytest.approx(0.02**2 + 0.01**2 / 2, rel=0.3)
    assert prior.noise is not None
    assert prior.noise.variance == pytest.approx(0.01**2, rel=0.3)
    assert not prior.assumed


def test_prior_of_passes_over_cells_without_logarithms() -> None:
    """Cells with an empty window, a zero, a text or a NaN are ignored."""
    good = [make_cell(4.0, [4.0, 4.1, 4.2 + i / 10]) for i in range(6)]
    bad = [make_cell(1.0), *(make_cell(1.0, [1.0, value]) for value in (0.0, "4.2", math.nan, math.inf))]
    assert prior_of(bad) == DEFAULT_PRIOR
    assert prior_of([*bad, *good]) == prior_of(good)


def test_prior_of_single_runs_assumes_the_noise() -> None:
    """With one run per session, noise cannot be told from drift."""
    assert prior_of([make_cell(4.0, *([4.0 + i] for i in range(4)))] * 6).noise == DEFAULT_NOISE


def test_an_assumption_gives_way() -> None:
    """The cell's own degrees of freedom replace those of an assumed prior, but not of an estimated one."""
    own = Variance(1e-4, 3.0)
    assert DEFAULT_PRIOR.beside(own).df == 5
    assert DEFAULT_NOISE.beside(Variance(1e-4, 9.0)).df == 0
    assert Prior(variance=1e-4, df=8.0).beside(own).df == 8


@pytest.mark.parametrize("x", [1e-6, 0.01, 0.5, 1.0, 30.0, 1e6])
def test_inverse_trigamma(x: float) -> None:
    """Newton's method inverts trigamma over the range that a fit can need."""
    assert float(polygamma(1, _inverse_trigamma(x))) == pytest.approx(x, rel=1e-6)
