"""Nominal levels of the looks, checked against the literature and an independent simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import ndtr

from pytest_llmperf.stats.alpha_spending import even, late, nominal_levels

LOOKS = (4, 6, 8, 12, 16, 24)
SHORT = (4, 6, 8, 12)


@pytest.mark.parametrize(
    ("total", "looks", "spending", "levels"),
    [
        (0.05, LOOKS, late, [0.00312, 0.00296, 0.00401, 0.00857, 0.01421, 0.03976]),
        (0.01, LOOKS, late, [0.00063, 0.00055, 0.00073, 0.00158, 0.00256, 0.00726]),
        (0.001, LOOKS, late, [0.00006, 0.00005, 0.00007, 0.00015, 0.00024, 0.00066]),
        (0.05, LOOKS, even, [0.0126, 0.0097, 0.0103, 0.0146, 0.0161, 0.0222]),
        (0.01, SHORT, late, [0.00150, 0.00166, 0.00262, 0.00736]),
        (0.05, SHORT, even, [0.0227, 0.0171, 0.0174, 0.0230]),
    ],
)
def test_levels_of_a_simulation(total, looks, spending, levels):
    """The levels come from six million simulated paths; the tolerance is 2 %, and more where few paths cross."""
    assert nominal_levels(total, looks, spending) == pytest.approx(levels, rel=0.02, abs=1.5e-5)


def test_levels_of_the_literature():
    """Five equal looks at a one-sided 2.5 %, spent as Lan and DeMets do: 2.44, 2.43, 2.41, 2.40, 2.39 (their table)."""
    z = [2.44, 2.43, 2.41, 2.40, 2.39]
    assert nominal_levels(0.025, (1, 2, 3, 4, 5), even) == pytest.approx([float(ndtr(-x)) for x in z], rel=0.02)


@pytest.mark.parametrize("total", [0.2, 0.01])
def test_paths_cross_as_often_as_told(total):
    """The share of simulated random walks that cross any boundary equals the total."""
    walks = np.cumsum(np.random.default_rng(1).normal(size=(100_000, 24)), axis=1)
    p = ndtr(-walks / np.sqrt(np.arange(1, 25)))
    crossed = np.any([p[:, n - 1] <= a for n, a in zip(LOOKS, nominal_levels(total, LOOKS, late), strict=True)], axis=0)
    assert crossed.mean() == pytest.approx(total, rel=0.1)


@pytest.mark.parametrize("spending", [late, even])
def test_all_is_spent_at_the_end(spending):
    """A spending function rises from 0 to 1."""
    assert [spending(0.0), spending(1.0)] == pytest.approx([0, 1])


@pytest.mark.parametrize("total", [0.0, -0.1, 0.5, float("nan")])
def test_what_is_no_error_probability_is_refused(total):
    """Zero, a half and NaN are refused."""
    with pytest.raises(ValueError, match="error probability"):
        nominal_levels(total, LOOKS, late)


@pytest.mark.parametrize("total", [0.05, 0.01, 0.05 / 100])
def test_one_more_look_stays_within_the_total(total):
    """Between two looks, the level of the earlier one may be used once more."""
    levels = nominal_levels(total, LOOKS, late)
    assert all(total * late(n / 24) + level < total for n, level in zip(LOOKS[:-1], levels, strict=False))
