"""Warm-up: when it ends, and what it reports."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.measure.warmup import WINDOW, warm_up


def test_warming_up_ends_when_the_windows_agree():
    """A decreasing series is followed until it is steady; a steady one ends after two windows."""
    steady = warm_up(iter([1.0] * 20).__next__, cap=20)
    assert (steady.requests, steady.steady, steady.drift) == (1 + 2 * WINDOW, True, 0.0)
    decaying = warm_up(iter([2.0**-n for n in range(6)] + [0.01] * 15).__next__, cap=20)
    assert decaying.steady
    assert decaying.requests > 7


def test_warming_up_that_never_settles_is_told():
    """It ends at the cap, and is recorded as not steady."""
    found = warm_up((0.5**n for n in itertools.count()).__next__, cap=7)
    assert (found.requests, found.steady) == (7, False)
    assert found.drift == pytest.approx(-0.75)


@given(st.lists(st.floats(0.001, 1000), min_size=30, max_size=30), st.integers(0, 30))
def test_warming_up_never_exceeds_its_cap(durations, cap):
    """For any durations."""
    assert warm_up(iter(durations).__next__, cap=cap).requests <= cap
