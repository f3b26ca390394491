"""The belief of a noisy binary search, and what it asks next."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llmperf.stats.noisy_bisection import ENOUGH, NoisyBisection, first_bad_belief

STEP = math.log(1.05)
finite = st.floats(-0.5, 0.5)
histories = st.lists(st.lists(finite, max_size=4), min_size=1, max_size=12)


def search(candidates: int, *, last: float = STEP) -> NoisyBisection:
    found = NoisyBisection(candidates)
    found.add(candidates - 1, [last - 0.005, last, last + 0.005, last])
    return found


def played(first_bad: int, candidates: int, *, spread: float, seed: int, outliers: float = 0.0) -> NoisyBisection:
    """Run a search whose differences scatter, until it has found one or asked a hundred times."""
    noise = random.Random(seed)

    def difference(position: int) -> float:
        outlying = 0.3 if noise.random() < outliers else 0.0
        return noise.gauss(STEP if position >= first_bad else 0.0, spread) + outlying

    found = NoisyBisection(candidates)
    found.add(candidates - 1, [difference(candidates - 1) for _ in range(8)])
    for _ in range(100):
        if found.found is None:
            found.add(found.next, [difference(found.next)])
    return found


@given(histories)
@settings(deadline=None, max_examples=60)
def test_belief_is_a_distribution(differences):
    """Whatever was measured."""
    belief = first_bad_belief([*differences, [STEP, STEP + 0.01]])
    assert math.isclose(sum(belief), 1.0)
    assert all(0.0 <= one <= 1.0 for one in belief)


def test_nothing_measured_means_equal_belief():
    assert search(5).belief == pytest.approx([0.2] * 5)


@given(st.integers(2, 30), st.data())
@settings(deadline=None, max_examples=60)
def test_a_good_answer_moves_belief_to_later_candidates_and_a_bad_one_to_earlier_ones(candidates, data):
    asked = data.draw(st.integers(0, candidates - 2))
    for value, side in ((0.0, range(asked + 1)), (STEP, range(asked + 1, candidates))):
        found = search(candidates)
        before = found.share(side)
        found.add(asked, [value])
        once = found.share(side)
        found.add(asked, [value])
        assert found.share(side) < once < before


@given(st.integers(1, 40), st.data())
@settings(deadline=None, max_examples=40)
def test_exact_answers_find_each_candidate_in_few_steps(candidates, data):
    """As an ordinary binary search does, plus a few to be sure."""
    first_bad = data.draw(st.integers(0, candidates - 1))
    found, steps = search(candidates), 0
    while found.found is None:
        found.add(found.next, [STEP if found.next >= first_bad else 0.0])
        steps += 1
    assert found.found == range(first_bad, first_bad + 1)
    assert steps <= math.ceil(math.log2(candidates)) + 3


@given(histories.filter(any), st.randoms())
@settings(deadline=None, max_examples=40)
def test_the_order_of_answers_does_not_matter(differences, shuffled):
    """So an interrupted search continues where it was."""
    orders = [list(one) for one in differences]
    for one in orders:
        shuffled.shuffle(one)
    last = [STEP, STEP + 0.01]
    assert first_bad_belief([*orders, last]) == pytest.approx(first_bad_belief([*differences, last]), abs=1e-9)


@pytest.mark.parametrize("outliers", [0.0, 0.08])
def test_scattering_answers_find_it_nearly_always(outliers):
    """The spread is a fifth of the step; some processes are slowed by a third."""
    found = [played(first, 32, spread=0.01, seed=first, outliers=outliers).found for first in range(32)]
    right = [one == range(first, first + 1) for first, one in enumerate(found)]
    assert sum(right) >= 30


def test_one_wrong_answer_is_outvoted():
    """A spike at a good candidate looks like the step at first."""
    found = search(8)
    found.add(3, [STEP])
    assert found.share(range(4)) > 0.9
    for _ in range(4):
        found.add(3, [0.0])
    assert found.share(range(4)) < 0.1


def test_the_next_question_divides_the_belief():
    found = search(9)
    assert found.next in (3, 4)
    found.add(4, [0.0, 0.001])
    assert found.next in (6, 7)


def test_skipped_candidates_are_not_asked_and_found_with_their_successor():
    found = search(4)
    for skipped in (1, 2):
        found.skip(skipped)
    assert found.next == 0
    found.add(0, [0.0, 0.001, -0.001])
    assert found.found == range(1, 4)
    assert found.belief[1:] == pytest.approx([found.share(range(1, 4)) / 3] * 3)
    assert found.next == 0


def test_all_skipped_leaves_all():
    found = search(3)
    for skipped in (0, 1):
        found.skip(skipped)
    assert found.next is None
    assert found.found == range(3)
    with pytest.raises(ValueError, match="last candidate"):
        found.skip(2)


def test_likely_is_the_shortest_range_with_enough_belief():
    found = search(16)
    assert found.likely == range(16)
    found.add(7, [0.0, 0.001])
    assert found.likely == range(8, 16)
    assert found.share(found.likely) >= ENOUGH


@pytest.mark.parametrize(("last", "words"), [([STEP], "1 differences"), ([-0.1, -0.1], "not worse")])
def test_the_last_candidate_must_show_the_step(last, words):
    with pytest.raises(ValueError, match=words):
        first_bad_belief([[], last])
