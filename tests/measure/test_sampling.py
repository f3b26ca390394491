"""The sampling rule and loop, by properties, with a simulated clock."""

from __future__ import annotations

import math
from random import Random
from statistics import NormalDist, median, stdev
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.measure.sampling import (
    LARGEST_BATCH,
    LEAST_SAMPLES,
    MOST_SAMPLES,
    Rule,
    Sampler,
    Stop,
    error_of_median,
)

ALWAYS_WELL = SimpleNamespace(accepts=lambda samples: True)
durations = st.floats(1e-3, 1e4)


def collect(rule: Rule, *, ms, estimate_ms: float = 1.0, throttling=ALWAYS_WELL):
    """Sample with times that ``ms`` draws; return samples, the stop reason, and the time spent before each batch."""
    spent, batches = [0.0], []

    def take(size: int):
        batch = [ms() for _ in range(size)]
        batches.append(size)
        spent.append(spent[-1] + math.fsum(batch))
        return batch, math.fsum(batch)

    samples, stop = Sampler(rule, throttling).collect(take, estimate_ms=estimate_ms)
    return samples, stop, spent, batches


@given(st.lists(durations, max_size=LEAST_SAMPLES - 1), st.floats(0, 1e9))
def test_it_never_stops_below_the_least(samples, spent_ms):
    """Whatever the precision and the time spent."""
    assert Rule().stop(samples, spent_ms) is None


@given(
    st.integers(0, 2**32),
    durations,
    st.floats(0, 2),
    durations,
    st.builds(Rule, budget_ms=st.floats(1, 1000), precision=st.floats(1e-4, 0.1)),
)
def test_it_always_ends_within_its_bounds(seed, scale, noise, estimate_ms, rule):
    """After the least samples, no batch begins beyond the budget or the largest number of samples."""
    random = Random(seed)
    samples, stop, spent, batches = collect(
        rule, ms=lambda: scale * math.exp(noise * random.gauss()), estimate_ms=estimate_ms
    )
    assert LEAST_SAMPLES <= len(samples) == sum(batches) <= MOST_SAMPLES
    assert max(batches) <= LARGEST_BATCH
    assert all(before < rule.budget_ms for before in spent[1:-1])
    assert (stop is Stop.PRECISION) == (error_of_median(samples) <= rule.precision)
    assert (stop is Stop.NUMBER) == (stop is not Stop.PRECISION and len(samples) == MOST_SAMPLES)
    assert stop is not Stop.TIME or spent[-1] >= rule.budget_ms


@given(durations, durations, st.floats(1, 1000))
def test_constant_samples_need_one_batch(ms, estimate_ms, budget_ms):
    """They are precise at once."""
    samples, stop, _, batches = collect(Rule(budget_ms=budget_ms), ms=lambda: ms, estimate_ms=estimate_ms)
    assert (stop, len(batches)) == (Stop.PRECISION, 1)
    assert len(samples) == max(LEAST_SAMPLES, min(LARGEST_BATCH, int(min(20.0, budget_ms) / estimate_ms)))


@given(durations, st.floats(1, 800))
def test_time_runs_out_on_time(ms, calls):
    """With 10 % variation, no batch ends much later than the budget, except for the least samples."""
    random = Random(0)
    rule = Rule(budget_ms=ms * calls, precision=1e-9)
    _, stop, spent, _ = collect(rule, ms=lambda: ms * random.choice([0.9, 1.1]), estimate_ms=ms)
    assert stop is Stop.TIME
    assert spent[-1] <= max(1.1 * LEAST_SAMPLES * ms, rule.budget_ms * 1.1 / 0.9 + 1.1 * ms)


@given(st.lists(st.integers(1, 1000), min_size=LEAST_SAMPLES, max_size=200), st.integers(-20, 20))
def test_scaling_changes_nothing(samples, exponent):
    """The relative error does not depend on the unit."""
    scaled = [sample * 2.0**exponent for sample in samples]
    assert error_of_median(scaled) == error_of_median(samples)
    assert Rule().stop(scaled, 0.0) == Rule().stop(samples, 0.0)


@given(st.integers(1, 3000), durations)
def test_a_given_number_is_taken_in_one_batch(number, ms):
    """Without synchronizing between samples."""
    samples, stop, _, batches = collect(Rule.of(number, None, None), ms=lambda: ms)
    assert (len(samples), stop, batches) == (number, Stop.NUMBER, [number])


def test_a_clock_that_tells_no_time_ends_as_well():
    """The precision is never reached."""
    samples, stop, *_ = collect(Rule(), ms=lambda: 0.0)
    assert (len(samples), stop) == (MOST_SAMPLES, Stop.NUMBER)
    assert error_of_median(samples) == math.inf


@pytest.mark.parametrize("n", [10, 11, 40, 100, 1000])
def test_the_error_is_that_of_medians(n):
    """Within a fourth of the spread of medians of normal samples; larger for ten samples."""
    random = Random(n)
    sets = [[random.gauss(100, 1) for _ in range(n)] for _ in range(600)]
    spread = stdev(median(samples) for samples in sets)
    told = math.sqrt(sum((100 * error_of_median(samples)) ** 2 for samples in sets) / len(sets))
    assert spread < 1.05 * told
    assert told < 1.25 * spread or n < 40


def test_a_few_wild_samples_are_no_error_of_the_median():
    """Such as samples during which the system interrupted a call."""
    calm = [NormalDist(100, 1).inv_cdf((rank + 0.5) / 95) for rank in range(95)]
    assert error_of_median([*calm, *[1e6] * 5]) < 2 * error_of_median(calm)


def test_discarded_samples_are_not_among_the_rest():
    """They are repeated, and their time counts for the budget."""
    answers, recovered = iter([False, True]), []
    throttling = SimpleNamespace(accepts=lambda samples: next(answers), recover=lambda warm_up: recovered.append(1))
    times = iter(range(1, 100))
    samples, _, spent, batches = collect(Rule.of(3, None, None), ms=lambda: next(times), throttling=throttling)
    assert (samples, batches, spent, recovered) == ((4, 5, 6), [3, 3], [0.0, 6.0, 21.0], [1])
