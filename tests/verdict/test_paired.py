"""Paired verdict: data that reach each outcome, invariances, and error rates."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.metrics import METRICS, Limit
from pytest_llmperf.verdict.model import Outcome, Verdict
from pytest_llmperf.verdict.paired import LOOKS, Block, judge_paired, next_look, null_trips, veto
from pytest_llmperf.verdict.sentence import sentence

TPOT, RATE = METRICS["tpot_ms"], METRICS["decode_tokens_per_s"]
LIMIT = replace(Limit.of(TPOT), floor=0.0)
SEED = 20240607

ratios = st.floats(0.5, 2.0)
many_ratios = st.lists(ratios, min_size=1, max_size=30)
few_ratios = st.lists(ratios, min_size=4, max_size=4)
moves = {Outcome.REGRESSED, Outcome.IMPROVED}


def blocks_of(values, base=4.0, shift=0.0):
    """Return blocks with those ratios head / base times exp(shift), in ABBA order."""
    return [
        Block(base=base, head=base * ratio * math.exp(shift), base_first=i % 4 in {0, 3})
        for i, ratio in enumerate(values)
    ]


def judged(blocks, **changes) -> Verdict:
    settings = {"test": "test_decode", "metric": TPOT, "limit": LIMIT, "blocks": blocks} | changes
    return judge_paired(**settings)


def outcome(values, **changes) -> Outcome:
    return judged(blocks_of(values), **changes).outcome


def noise(blocks, sd, seed=SEED):
    """Return ratios whose ln has exactly that standard deviation and mean 0."""
    logs = np.random.default_rng(seed).normal(size=blocks)
    return np.exp((logs - logs.mean()) / logs.std(ddof=1) * sd).tolist()


class TestReach:
    """Every outcome can be reached at the first look."""

    @pytest.mark.parametrize("alpha", [0.05, 0.01, 0.05 / 100])
    @pytest.mark.parametrize(
        ("shift", "expected"),
        [(0.15, Outcome.REGRESSED), (0.0, Outcome.UNCHANGED), (-0.15, Outcome.IMPROVED)],
    )
    def test_at_four_blocks(self, shift, expected, alpha):
        """Four blocks with a spread of half a per cent suffice for each outcome, down to the level of 100 cells."""
        assert judged(blocks_of(noise(4, 0.005), shift=shift), alpha=alpha).outcome is expected

    def test_undecided_at_four_blocks(self):
        """A change between ``tolerate`` and ``catch`` is inconclusive, and the reason names the next look."""
        verdict = judged(blocks_of(noise(4, 0.015), shift=0.035))
        assert verdict.outcome is Outcome.INCONCLUSIVE
        assert verdict.reason == (
            "a change for the worse of 5 % is neither shown nor ruled out (2 more blocks until the next look)"
        )

    def test_identical_blocks_have_a_finite_t(self):
        """The floor of 0.2 % replaces a spread of zero: a change at the margin is none, one of 5 % is."""
        at_margin, five = judged(blocks_of([1.02] * 4)), judged(blocks_of([1.05] * 4))
        assert (at_margin.outcome, five.outcome) == (Outcome.UNCHANGED, Outcome.REGRESSED)
        assert five.p_value is not None
        assert 0 < five.p_value < 1

    @pytest.mark.parametrize("count", [n for n in range(1, 24) if n not in LOOKS])
    def test_between_looks_nothing_is_decided(self, count):
        """Even clear blocks are inconclusive, and the reason names the next look."""
        verdict = judged(blocks_of([2.0] * count))
        left = next_look(count) - count
        assert verdict.outcome is Outcome.INCONCLUSIVE
        assert verdict.reason == f"{left} more block{'s' * (left > 1)} until the next look"

    @pytest.mark.parametrize("count", [5, 7, 11, 23])
    def test_a_spent_budget_decides_between_looks(self, count):
        """The level is that of the last look passed."""
        assert outcome([2.0] * count, final=True) is Outcome.REGRESSED

    def test_a_spent_budget_is_never_more_lenient(self):
        """Seven blocks are held to the level of the look at six, not to a later one."""
        for shift in np.linspace(0.02, 0.08, 60):
            verdict = judged(blocks_of(noise(7, 0.02), shift=shift), final=True)
            assert (verdict.outcome is Outcome.REGRESSED) == (verdict.p_value <= 0.00300)

    @pytest.mark.parametrize("count", [1, 2, 3])
    def test_a_budget_below_the_first_look_decides_nothing(self, count):
        """There is no p-value either."""
        verdict = judged(blocks_of([2.0] * count), final=True)
        assert (verdict.outcome, verdict.p_value) == (Outcome.INCONCLUSIVE, None)
        assert verdict.reason.startswith("budget ran out after")

    def test_what_is_not_known_by_the_last_look_stays_open(self):
        """With noise of 6 %, a change of 3.5 % is inconclusive."""
        verdict = judged(blocks_of(noise(24, 0.06), shift=0.035))
        assert verdict.outcome is Outcome.INCONCLUSIVE
        assert "last look" in verdict.reason

    @pytest.mark.parametrize(("blocks", "look"), [(0, 4), (3, 4), (4, 6), (8, 12), (16, 24), (23, 24), (24, None)])
    def test_next_look(self, blocks, look):
        """The next look is the smallest number of blocks above the present one."""
        assert next_look(blocks) == look


class TestFigures:
    """Figures of the verdict."""

    def test_means_ratio_and_evidence(self):
        """The verdict has the geometric means of both sides, their ratio and the number of blocks."""
        blocks = [replace(b, base=b.base * 2**i, head=b.head * 2**i) for i, b in enumerate(blocks_of([1.1] * 4))]
        verdict = judged(blocks)
        assert verdict.baseline == pytest.approx(4 * 2**1.5)
        assert verdict.cell.value == pytest.approx(4.4 * 2**1.5)
        assert verdict.ratio == pytest.approx(1.1)
        assert verdict.interval.low < 1.1 < verdict.interval.high
        assert (verdict.limit_ratio, verdict.blocks, verdict.runs) == (pytest.approx(1.02), 4, 4)
        assert verdict.cell.figures == [b.base for b in blocks]

    def test_sentence_counts_blocks(self):
        """The sentence counts blocks, not runs."""
        line = sentence(judged(blocks_of([1.1, 1.11, 1.1, 1.09, 1.1, 1.12, 1.1, 1.1])))
        assert line.startswith("TPOT ×1.102 [1.096, 1.107]: 4.41 ms > 4.00 ms baseline, limit ×1.02 (p=")
        assert line.endswith("8 paired blocks)")

    def test_only_gating_cells_fail(self):
        """A limit that does not gate fails nothing."""
        assert judged(blocks_of([1.5] * 4)).fails
        assert not judged(blocks_of([1.5] * 4), limit=replace(LIMIT, gates=False)).fails

    @pytest.mark.parametrize(("ratio", "expected"), [(0.8, Outcome.REGRESSED), (1.2, Outcome.IMPROVED)])
    def test_larger_is_better(self, ratio, expected):
        """A lower rate is worse."""
        assert outcome([ratio] * 4, metric=RATE) is expected

    @pytest.mark.parametrize("ratio", [1.5, 1 / 1.5])
    @pytest.mark.parametrize(("metric", "base"), [(TPOT, 4.0), (RATE, 4.0)])
    def test_within_the_floor_nothing_changed(self, metric, base, ratio):
        """A change of 2 is none with a floor of 3, and is one with a floor of 1."""
        wide, narrow = (
            judged(blocks_of([ratio] * 4, base), metric=metric, limit=replace(LIMIT, floor=floor)) for floor in (3, 1)
        )
        assert wide.outcome is Outcome.UNCHANGED
        assert narrow.outcome in moves


class TestBadInput:
    """Input that gives no verdict."""

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0, -1.0, True, "4.2", None])
    @pytest.mark.parametrize("side", ["base", "head"])
    def test_invalid(self, side, value):
        """One bad value makes the cell invalid, and the reason names it."""
        blocks = blocks_of([2.0] * 4)
        blocks[2] = replace(blocks[2], **{side: value})
        verdict = judged(blocks)
        assert verdict.outcome is Outcome.INVALID
        assert f"{side} of block 3" in verdict.reason
        assert sentence(verdict)
        assert null_trips(blocks, TPOT, LIMIT)

    def test_no_blocks(self):
        """An empty list of blocks is the caller's error."""
        with pytest.raises(ValueError, match="no blocks"):
            judged([])
        with pytest.raises(ValueError, match="no blocks"):
            null_trips([], TPOT, LIMIT)

    @pytest.mark.parametrize("alpha", [0, 1, math.nan])
    def test_no_level(self, alpha):
        """An invalid level is refused, whatever the number of blocks."""
        with pytest.raises(ValueError, match="error probability"):
            judged(blocks_of([1.0]), alpha=alpha)

    @pytest.mark.parametrize("ratio", [1e-300, 1e300])
    def test_extremes(self, ratio):
        """No magnitude overflows."""
        assert judged(blocks_of([ratio] * 4)).outcome in moves
        blocks = [Block(base=5e-324, head=sys.float_info.max, base_first=bool(i % 2)) for i in range(4)]
        for metric, expected in ((TPOT, Outcome.REGRESSED), (RATE, Outcome.IMPROVED)):
            verdict = judged(blocks, metric=metric, limit=replace(LIMIT, floor=0.05))
            assert verdict.outcome is expected
            assert sentence(verdict)


class TestGuards:
    """Guards reject significant results."""

    def test_the_median_block_must_move(self):
        """A mean that rests on a few blocks is rejected, even with a small p-value."""
        verdict = judged(blocks_of(np.random.default_rng(1).permutation([1.2] * 11 + [1.005] * 13)))
        assert verdict.p_value < 0.02
        assert verdict.outcome is Outcome.INCONCLUSIVE
        assert "median change" in verdict.reason

    def test_three_quarters_must_agree(self):
        """At most a quarter of the blocks may disagree."""
        logs = np.array([0.08] * 17 + [-0.001] * 7)
        verdict = judged(blocks_of(np.exp(np.random.default_rng(1).permutation(logs))))
        assert verdict.outcome is Outcome.INCONCLUSIVE
        assert "agree" in verdict.reason
        logs[17] = 0.08
        assert outcome(np.exp(np.random.default_rng(1).permutation(logs))) is Outcome.REGRESSED

    def test_drift(self):
        """Blocks that slow down one after the other are rejected; shuffled, they are accepted."""
        values = np.exp(np.linspace(0.03, 0.2, 24))
        verdict = judged(blocks_of(values))
        assert verdict.outcome is Outcome.INCONCLUSIVE
        assert "drift" in verdict.reason
        assert outcome(np.random.default_rng(1).permutation(values)) is Outcome.REGRESSED

    @pytest.mark.parametrize("sign", [1, -1])
    def test_order_effect(self, sign):
        """Blocks that differ by which side ran first are rejected, in either direction."""
        values = [math.exp(sign * (0.11 if i % 4 in {0, 3} else 0.07) + 0.001 * (i % 3)) for i in range(8)]
        verdict = judged(blocks_of(values))
        assert verdict.outcome is Outcome.INCONCLUSIVE
        assert "order effect" in verdict.reason

    def test_one_order_is_not_enough(self):
        """If head always ran second, a change cannot be told from the effect of running second."""
        blocks = [replace(block, base_first=True) for block in blocks_of([1.2] * 24)]
        verdict = judged(blocks)
        assert verdict.outcome is Outcome.INCONCLUSIVE
        assert "same order" in verdict.reason

    def test_guards_leave_noise_alone(self):
        """On a noisy machine (3 %), nine in ten clear regressions are still found at the first looks."""
        rng = np.random.default_rng(SEED)
        found = [outcome(np.exp(rng.normal(0.25, 0.03, blocks))) for blocks in (6, 8) for _ in range(100)]
        assert np.mean([found is Outcome.REGRESSED for found in found]) > 0.9

    def test_unchanged_needs_no_guard(self):
        """A drift that returns to its start is still not a regression."""
        assert outcome(np.exp(np.linspace(-0.01, 0.01, 24))) is Outcome.UNCHANGED


class TestKnownNoise:
    """Blocks that agree better than the known noise allows."""

    def test_two_modes(self):
        """Four blocks with head in a 12 % slower mode regress without known noise, and not with it."""
        blocks = blocks_of(noise(4, 0.005), shift=0.12)
        assert judged(blocks).outcome is Outcome.REGRESSED
        assert judged(blocks, noise=0.06).outcome is Outcome.INCONCLUSIVE
        assert null_trips(blocks, TPOT, LIMIT)
        assert not null_trips(blocks, TPOT, LIMIT, noise=0.06)

    def test_it_is_that_of_one_run(self):
        """A block is two runs, so the interval reflects the spread of two."""
        interval = judged(blocks_of([1.0] * 4), noise=0.03).interval
        assert math.log(interval.high) == pytest.approx(3.182 * 0.03 * math.sqrt(2) / 2, rel=1e-3)

    @given(many_ratios, st.floats(0, 0.2), st.floats(0, 0.2))
    def test_more_noise_is_never_more_lenient(self, values, some, other):
        """A change found with more noise is also found with less."""
        less, more = (judged(blocks_of(values), final=True, noise=sd).outcome for sd in sorted([some, other]))
        assert more not in moves or less is more


class TestNullControl:
    """Null control: base against base."""

    def test_trips_only_where_something_moved(self):
        """A quiet control passes; one that changed in either direction trips, also between looks."""
        assert not null_trips(blocks_of(noise(5, 0.01)), TPOT, LIMIT)
        assert null_trips(blocks_of([1.1] * 5), TPOT, LIMIT)
        assert null_trips(blocks_of([0.9] * 5), TPOT, LIMIT)

    def test_too_few_blocks_never_trip(self):
        """Three blocks decide nothing in a control either."""
        assert not null_trips(blocks_of([1.5] * 3), TPOT, LIMIT)

    @pytest.mark.parametrize(("ratio", "vetoed"), [(1.2, True), (0.8, True), (1.0, False)])
    def test_veto(self, ratio, vetoed):
        """A veto makes changes inconclusive and keeps other outcomes."""
        verdict = judged(blocks_of([ratio] * 4))
        after = veto(verdict, "the null control tripped")
        assert (after.outcome is Outcome.INCONCLUSIVE) is vetoed
        assert (after.reason == "the null control tripped") is vetoed
        assert not after.fails
        assert after.ratio == verdict.ratio


SWAPPED = {Outcome.REGRESSED: Outcome.IMPROVED, Outcome.IMPROVED: Outcome.REGRESSED}
ORDER = {Outcome.IMPROVED: 0, Outcome.UNCHANGED: 1, Outcome.INCONCLUSIVE: 1, Outcome.REGRESSED: 2}


class TestInvariance:
    """Transformations that do not change the verdict."""

    @given(st.lists(ratios, min_size=4, max_size=30), st.integers(-20, 20))
    def test_units(self, values, power):
        """Values and floor in another unit give the same verdict."""
        scale, limit = 2.0**power, replace(LIMIT, floor=0.05)
        a = judged(blocks_of(values), limit=limit, final=True)
        b = judged(blocks_of(values, 4.0 * scale), limit=replace(limit, floor=0.05 * scale), final=True)
        assert a.outcome is b.outcome
        assert (a.ratio, a.p_value) == (pytest.approx(b.ratio), pytest.approx(b.p_value, rel=1e-6, abs=1e-12))

    @given(many_ratios, st.booleans())
    def test_roles(self, values, final):
        """A regression from base to head is an improvement from head to base, for the same reasons."""
        blocks = blocks_of(values)
        swapped = [Block(base=b.head, head=b.base, base_first=not b.base_first) for b in blocks]
        a, b = judged(blocks, final=final).outcome, judged(swapped, final=final).outcome
        if a in moves or b in moves:
            assert SWAPPED[a] is b

    @given(st.lists(ratios, min_size=4, max_size=30))
    def test_direction(self, values):
        """A rate is judged like its reciprocal, a time."""
        blocks = blocks_of(values)
        rates = [Block(base=1 / b.base, head=1 / b.head, base_first=b.base_first) for b in blocks]
        a, b = judged(blocks, final=True), judged(rates, metric=RATE, final=True)
        assert a.outcome is b.outcome
        assert a.p_value == pytest.approx(b.p_value, rel=1e-6)

    @given(many_ratios, st.randoms(use_true_random=False))
    def test_order(self, values, random: Random):
        """The order of blocks changes no figure, bitwise, and the outcome only through the drift guard."""
        blocks = blocks_of(values)
        shuffled = random.sample(blocks, len(blocks))
        a, b = judged(blocks, final=True), judged(shuffled, final=True)
        assert (a.ratio, a.interval, a.p_value, a.baseline) == (b.ratio, b.interval, b.p_value, b.baseline)
        if "drift" not in a.reason + b.reason:
            assert a.outcome is b.outcome

    @given(many_ratios, st.floats(1.0, 3.0), st.floats(1.0, 3.0))
    def test_monotone_in_the_effect(self, values, factor, other):
        """A slower head never gets a better verdict."""
        factors = sorted([1.0, factor, factor * other])
        ranks = [ORDER[judged(blocks_of(values, shift=math.log(f)), final=True).outcome] for f in factors]
        assert ranks == sorted(ranks)

    @given(few_ratios, st.floats(0.0001, 0.4), st.floats(0.0001, 0.4))
    def test_monotone_in_the_level(self, values, alpha, other):
        """A regression at a strict level is one at a looser level."""
        strict, loose = (outcome(values, alpha=level) is Outcome.REGRESSED for level in sorted([alpha, other]))
        assert strict <= loose


def stopped(rng, mean, sd, alpha=0.05):
    """Return the outcome of one cell that is tested at each look until it is decided."""
    logs = rng.normal(mean, sd, LOOKS[-1])
    for look in LOOKS:
        verdict = judged(blocks_of(np.exp(logs[:look])), alpha=alpha)
        if verdict.outcome.decided:
            break
    return verdict.outcome


class TestErrors:
    """Monte Carlo simulation of whole sequences of looks."""

    @pytest.mark.parametrize("sd", [0.01, 0.03])
    def test_at_the_margin(self, sd):
        """A slowdown at the margin regresses at most as often as the level."""
        rng, total = np.random.default_rng(SEED), 1500
        errors = sum(stopped(rng, math.log1p(0.02), sd, 0.2) is Outcome.REGRESSED for _ in range(total))
        assert errors / total < 0.2 + 2 * math.sqrt(0.2 * 0.8 / total)

    def test_unchanged_code(self):
        """Unchanged code at 2 % noise: the false alarm rate is below one in a hundred at a level of 5 %, either way."""
        rng = np.random.default_rng(SEED)
        moved = [stopped(rng, 0.0, 0.02) in moves for _ in range(1000)]
        assert np.mean(moved) < 0.01

    def test_a_slowdown_that_must_be_caught(self):
        """A slowdown of 5 % at 2 % noise is found in 90 % and called unchanged in 5 %, at a level of 5 %."""
        rng = np.random.default_rng(SEED)
        found = [stopped(rng, math.log(1.05) + 0.005, 0.02) for _ in range(500)]
        assert np.mean([one is Outcome.REGRESSED for one in found]) > 0.9
        assert np.mean([one is Outcome.UNCHANGED for one in found]) < 0.05
