"""Window statistics in logarithms: each session counts once, in any order of runs."""

from __future__ import annotations

import math
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from verdict_cells import make_cell

from pytest_llmperf.metrics import METRICS
from pytest_llmperf.stats.moderated_variance import UNKNOWN, Variance
from pytest_llmperf.verdict.window_stats import History, oriented

times = st.floats(0.01, 1e4)
sessions = st.lists(st.lists(times, min_size=1, max_size=4), min_size=1, max_size=6)


def test_variance_components() -> None:
    """Centre and both variances equal the textbook formulas on ln(value)."""
    runs = [[4.0, 4.2, 4.1], [4.4, 4.5], [4.3]]
    logs = [np.log(session) for session in runs]
    means = [session.mean() for session in logs]
    history = History.of(make_cell(1.0, *runs))
    assert history.center == pytest.approx(np.mean(means))
    assert history.between == pytest.approx((np.var(means, ddof=1), 2))
    squares = sum(((session - session.mean()) ** 2).sum() for session in logs)
    assert history.within == pytest.approx((squares / 3, 3))
    assert (history.runs, history.sessions) == (6, 3)
    assert history.runs_per_session == pytest.approx(3 / (1 / 3 + 1 / 2 + 1))


def test_one_run_knows_no_spread() -> None:
    """A single run gives no estimate of either variance."""
    history = History.of(make_cell(1.0, [4.2]))
    assert (history.between, history.within) == (UNKNOWN, UNKNOWN)


@given(sessions, st.randoms(use_true_random=False))
def test_order_does_not_matter(runs: list[list[float]], random: Random) -> None:
    """Shuffled runs and sessions give bitwise the same result."""
    shuffled = [random.sample(session, len(session)) for session in random.sample(runs, len(runs))]
    assert History.of(make_cell(1.0, *shuffled)) == History.of(make_cell(1.0, *runs))


@given(st.lists(times, min_size=1, max_size=6), st.lists(st.integers(1, 5), min_size=6, max_size=6))
def test_a_session_counts_once(figures: list[float], repeats: list[int]) -> None:
    """More runs with the same mean do not change the centre or the variance between sessions."""
    unequal = [[figure] * repeat for figure, repeat in zip(figures, repeats, strict=False)]
    once, often = History.of(make_cell(1.0, *([f] for f in figures))), History.of(make_cell(1.0, *unequal))
    assert often.center == pytest.approx(once.center, abs=1e-12)
    assert often.between == pytest.approx(once.between, abs=1e-12)
    assert often.sessions == once.sessions


def test_more_is_worse() -> None:
    """Only the metric's direction sets the sign of the logarithms."""
    assert oriented(METRICS["tpot_ms"], math.e) == 1
    assert oriented(METRICS["decode_tokens_per_s"], math.e) == -1


def test_pooling_weighs_by_degrees_of_freedom() -> None:
    """Two estimates of one variance are pooled; two unknown ones stay unknown."""
    assert Variance(1.0, 3.0).pooled(Variance(2.0, 1.0)) == Variance(1.25, 4.0)
    assert UNKNOWN.pooled(UNKNOWN) == UNKNOWN
