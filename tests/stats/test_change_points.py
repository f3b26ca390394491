"""Change point detection: steps are found in place, noise gives none."""

from __future__ import annotations

import math
import random

import pytest

from pytest_llmperf.stats.change_points import FEWEST_POINTS, change_points, noise

SEEDS = range(60)


def series(seed: int, *steps: float, points: int = 20, sd: float = 0.01) -> list[float]:
    """Return logarithms with noise and equidistant steps."""
    generator = random.Random(seed)
    levels = [0.0]
    for step in steps:
        levels.append(levels[-1] + math.log1p(step))
    return [levels[number * len(levels) // points] + generator.gauss(0, sd) for number in range(points)]


@pytest.mark.parametrize("step", [0.05, -0.05])
def test_a_step_of_five_times_the_noise_is_found_where_it_is(step):
    """In nine of ten series the step is found within one point, and nothing else."""
    found = [change_points(series(seed, step)) for seed in SEEDS]
    assert sum(len(points) == 1 and abs(points[0] - 10) <= 1 for points in found) >= 0.9 * len(SEEDS)


@pytest.mark.parametrize(("points", "most"), [(FEWEST_POINTS, 0.15), (10, 0.15), (20, 0.1), (40, 0.05)])
def test_noise_alone_has_no_change_points_in_most_series(points, most):
    """This holds for every length of series."""
    found = [change_points(series(seed, points=points)) for seed in SEEDS]
    assert sum(map(bool, found)) <= most * len(SEEDS)


def test_steps_up_and_down_are_both_found():
    """The noise estimate is robust to the steps."""
    found = [change_points(series(seed, 0.08, -0.08, points=30)) for seed in SEEDS]
    assert sum(len(points) == 2 for points in found) >= 0.9 * len(SEEDS)
    assert noise(series(1, 0.5, -0.4, points=30)) == pytest.approx(0.01, rel=0.5)


def test_many_small_changes_add_up_to_a_change():
    """Ten changes of one per cent are found, although no gate detects one of them."""
    found = [change_points(series(seed, *[0.01] * 10, points=22)) for seed in SEEDS]
    assert sum(map(bool, found)) >= 0.9 * len(SEEDS)


def test_one_bad_day_is_not_a_level_and_few_points_tell_nothing():
    """A level has at least two points, and a series at least six."""
    for place in range(8):
        assert change_points([0.0, 0.001] * place + [1.0] + [0.0, 0.001] * (8 - place)) == []
    assert change_points([0.0, 0.0, 0.0, 1.0, 1.0]) == []
    assert change_points([0.0, 0.0, 0.0, 1.0, 1.0, 1.0]) == [3]


def test_equal_figures_have_no_changes():
    """A constant count has no noise to divide by."""
    assert change_points([5.0] * 20) == []
