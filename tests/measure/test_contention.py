"""Requests that CPU contention slowed are repeated, and the remaining ones are counted."""

from __future__ import annotations

from itertools import count, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.measure import contention
from pytest_llmperf.measure.contention import MOST_WAITED, PATIENCE, longest_wait, undisturbed, waits_ms


@pytest.fixture
def requests(monkeypatch):
    """Numbered requests of 1 ms; each waits its listed share, later ones not at all."""

    def of(*waits):
        total, numbers = [0.0], count()
        monkeypatch.setattr(contention, "waits_ms", lambda: {"main": total[0], "idle": 7.0})

        def make():
            number = next(numbers)
            total[0] += waits[number] if number < len(waits) else 0.0
            return number, 1.0

        return make

    return of


def test_a_quiet_machine_makes_no_request_twice(requests):
    """Requests are kept in order."""
    found = undisturbed(requests(0.0, MOST_WAITED, 0.01, 0.5), 3)
    assert (found.requests, found.disturbed) == ([0, 1, 2], 0)


def test_a_disturbed_request_is_made_again(requests):
    """The kept times exclude it."""
    found = undisturbed(requests(0.0, 0.5, 0.0, 0.03), 3)
    assert (found.requests, found.disturbed) == ([0, 2, 4], 0)


def test_where_all_are_disturbed_the_least_disturbed_are_told(requests):
    """After three times as many requests."""
    found = undisturbed(requests(0.9, 0.3, 0.8, 0.2, 0.7, 0.6), 2)
    assert (found.requests, found.disturbed) == ([1, 3], 2)


def test_a_system_that_does_not_tell(monkeypatch):
    """Without waiting times nothing is repeated, and the count is None."""
    monkeypatch.setattr(contention, "waits_ms", lambda: None)
    numbers = count()
    found = undisturbed(lambda: (next(numbers), 1.0), 2)
    assert (found.requests, found.disturbed) == ([0, 1], None)


@given(waits=st.lists(st.floats(0, 1), max_size=20), wanted=st.integers(1, 6))
def test_as_many_as_wanted_and_none_worse_than_one_left_out(waits, wanted):
    """For any sequence of waiting times."""
    numbers, totals = count(), [0.0]

    def make():
        number = next(numbers)
        totals.append(totals[-1] + (waits[number] if number < len(waits) else 0.0))
        return number, 1.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contention, "waits_ms", lambda: {"main": totals[-1], "idle": 7.0})
        found = undisturbed(make, wanted)
    made = next(numbers)
    assert len(found.requests) == wanted
    assert found.requests == sorted(set(found.requests))
    assert made <= PATIENCE * wanted
    calm = sum(after - before <= MOST_WAITED for before, after in pairwise(totals))  # as rounded as what is read
    assert found.disturbed == max(0, wanted - calm)


def test_the_thread_that_waited_most_counts():
    """New threads count; ended threads are ignored."""
    assert longest_wait({"a": 1.0, "b": 5.0, "gone": 0.0}, {"a": 3.0, "b": 6.0, "new": 1.5}) == 2.0
    assert longest_wait({}, {"new": 1.5}) == 1.5
    assert longest_wait(None, {"a": 1.0}) is longest_wait({"a": 1.0}, None) is longest_wait({}, {}) is None


def test_what_linux_counts_only_grows(monkeypatch, tmp_path):
    """Other systems return None."""
    first = waits_ms()
    assert first is None or longest_wait(first, waits_ms()) >= 0
    monkeypatch.setattr(contention, "_TASKS", tmp_path / "absent")
    assert waits_ms() is None
