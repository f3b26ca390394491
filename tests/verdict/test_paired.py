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
from pytest_llmperf.stats.alpha_spending import late, nominal_levels
from pytest_llmperf.stats.moderated_variance import Variance
from pytest_llmperf.verdict.model import Outcome, Verdict
from pytest_llmperf.verdict.paired import (
    ALPHA,
    LOOKS,
    Block,
    block_variance,
    judge_paired,
    next_look,
    null_blocks,
    null_trips,
    veto,
)
from pytest_llmperf.verdict.sentence import sentence

TPOT, RATE = METRICS["tpot_ms"], METRICS["decode_tokens_per_s"]
LIMIT = replace(Limit.of(TPOT), floor=0.0)
SEED = 20240607

ratios = st.floats(0.5, 2.0)
many_ratios = st.lists(ratios, min_size=1, max_size=50)
few_ratios = st.lists(ratios, min_size=8, max_size=8)
moves = {Outcome.REGRESSED, Outcome.IMPROVED}


def blocks_of(values, base=4.0, shift=0.0):
    """Return blocks with those ratios head / base times exp(shift), in ABBA order, whose pairs are unknown."""
    return [
        Block(base=base, head=base * ratio * math.exp(shift), base_first=i % 4 in {0, 3})
        for i, ratio in enumerate(values)
    ]


def mirrored(rng, count, sd, shift=0.0):
    """Return blocks in mirrored pairs, of processes whose ln(figure) has that standard deviation."""
    base, head = rng.normal(0.0, sd, count), rng.normal(shift, sd, count)
    return [
        Block(base=math.exp(b), head=math.exp(h), base_first=i % 4 in {0, 3}, pair=i // 2)
        for i, (b, h) in enumerate(zip(base, head, strict=True))
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
    """Every outcome can be reached early."""

    @pytest.mark.parametrize("alpha", [0.05, 0.01, 0.05 / 100])
    @pytest.mark.parametrize(
        ("shift", "expected"),
        [(0.15, Outcome.REGRESSED), (0.0, Outcome.UNCHANGED), (-0.15, Outcome.IMPROVED)],
    )
    def test_at_eight_blocks(self, shift, expected, alpha):
        """Eight blocks with a spread of half a per cent suffice for each outcome, down to the level of 100 cells."""
        assert judged(blocks_of(noise(8, 0.005), shift=shift), alpha=alpha).outcome is expected

    @pytest.mark.parametrize("count", [2, 4, 6])
    def test_fewer_blocks_show_no_change(self, count):
        """They may agree by chance."""
        verdict = judged(blocks_of([1.5] * count))
        assert verdict.outcome is Outcome.INCONCLUSIVE
        assert verdict.reason == "a change needs 8 blocks (2 more blocks until the next look)"

    def test_two_blocks_show_no_difference_beside_other_cells(self):
        """Alone, they leave the variance open."""
        assert outcome([1.0] * 2) is Outcome.INCONCLUSIVE
        assert outcome([1.0] * 2, typical=Variance(0.01**2, 8.0)) is Outcome.UNCHANGED

    def test_undecided_at_four_blocks(self):
        """A change between ``tolerate`` and ``catch`` is inconclusive, and the reason names the next look."""
        verdict = judged(blocks_of(noise(4, 0.015), shift=0.035))
        assert verdict.outcome is Outcome.INCONCLUSIVE
        assert verdict.reason == (
            "a change for the worse of 5 % is neither shown nor ruled out (2 more blocks until the next look)"
        )

    def test_identical_blocks_have_a_finite_t(self):
        """The floor of 0.2 % replaces a spread of zero: a change at the margin is none, one of 5 % is."""
        at_margin, five = judged(blocks_of([1.02] * 8)), judged(blocks_of([1.05] * 8))
        assert (at_margin.outcome, five.outcome) == (Outcome.UNCHANGED, Outcome.REGRESSED)
        assert five.p_value is not None
        assert 0 < five.p_value < 1

    @pytest.mark.parametrize("count", [n for n in range(1, LOOKS[-1]) if n not in LOOKS])
    def test_between_looks_nothing_is_decided(self, count):
        """Even clear blocks are inconclusive, and the reason names the next look."""
        verdict = judged(blocks_of([2.0] * count))
        left = next_look(count) - count
        assert verdict.outcome is Outcome.INCONCLUSIVE
        assert verdict.reason == f"{left} more block{'s' * (left > 1)} until the next look"

    @pytest.mark.parametrize("count", [9, 11, 23, 47])
    def test_a_spent_budget_decides_between_looks(self, count):
        """The level is that of the last look passed."""
        assert outcome([2.0] * count, final=True) is Outcome.REGRESSED

    def test_a_spent_budget_is_never_more_lenient(self):
        """Eleven blocks are held to the level of the look at eight, not to a later one."""
        level = nominal_levels(ALPHA, (8, 12, 16, 24, 36, 48), late)[0]
        found = [judged(blocks_of(noise(11, 0.02), shift=shift), final=True) for shift in np.linspace(0.02, 0.08, 60)]
        assert all((verdict.outcome is Outcome.REGRESSED) == (verdict.p_value <= level) for verdict in found)
        assert len({verdict.outcome for verdict in found}) > 1

    @pytest.mark.parametrize("count", [1, 2, 7])
    def test_a_budget_below_eight_blocks_shows_no_change(self, count):
        """Below the first look there is no p-value either."""
        verdict = judged(blocks_of([2.0] * count), final=True)
        assert (verdict.outcome, verdict.p_value is None) == (Outcome.INCONCLUSIVE, count == 1)
        assert "budget ran out after" in verdict.reason

    def test_what_is_not_known_by_the_last_look_stays_open(self):
        """With noise of 9 %, a change of 3.5 % is inconclusive."""
        verdict = judged(blocks_of(noise(LOOKS[-1], 0.09), shift=0.035))
        assert verdict.outcome is Outcome.INCONCLUSIVE
        assert "last look" in verdict.reason

    @pytest.mark.parametrize(
        ("blocks", "look"), [(0, 2), (3, 4), (4, 6), (8, 12), (16, 24), (23, 24), (24, 36), (48, None)]
    )
    def test_next_look(self, blocks, look):
        """The next look is the smallest number of blocks above the present one."""
        assert next_look(blocks) == look


class TestFigures:
    """Figures of the verdict."""

    def test_means_ratio_and_evidence(self):
        """The verdict has the geometric means of both sides, their ratio and the number of blocks."""
        blocks = [replace(b, base=b.base * 2**i, head=b.head * 2**i) for i, b in enumerate(blocks_of([1.1] * 8))]
        verdict = judged(blocks)
        assert verdict.baseline == pytest.approx(4 * 2**3.5)
        assert verdict.cell.value == pytest.approx(4.4 * 2**3.5)
        assert verdict.ratio == pytest.approx(1.1)
        assert verdict.interval.low < 1.1 < verdict.interval.high
        assert (verdict.limit_ratio, verdict.blocks, verdict.runs) == (pytest.approx(1.02), 8, 8)
        assert verdict.cell.figures == [b.base for b in blocks]

    def test_sentence_counts_blocks(self):
        """The sentence counts blocks, not runs."""
        line = sentence(judged(blocks_of([1.1, 1.11, 1.1, 1.09, 1.1, 1.12, 1.1, 1.1])))
        assert line.startswith("TPOT ×1.102 [1.096, 1.107]: 4.41 ms > 4.00 ms baseline, limit ×1.02 (p=")
        assert line.endswith("8 paired blocks)")

    def test_only_gating_cells_fail(self):
        """A limit that does not gate fails nothing."""
        assert judged(blocks_of([1.5] * 8)).fails
        assert not judged(blocks_of([1.5] * 8), limit=replace(LIMIT, gates=False)).fails

    @pytest.mark.parametrize(("ratio", "expected"), [(0.8, Outcome.REGRESSED), (1.2, Outcome.IMPROVED)])
    def test_larger_is_better(self, ratio, expected):
        """A lower rate is worse."""
        assert outcome([ratio] * 8, metric=RATE) is expected

    @pytest.mark.parametrize("ratio", [1.5, 1 / 1.5])
    @pytest.mark.parametrize(("metric", "base"), [(TPOT, 4.0), (RATE, 4.0)])
    def test_within_the_floor_nothing_changed(self, metric, base, ratio):
        """A change of 2 is none with a floor of 3, and is one with a floor of 1."""
        wide, narrow = (
            judged(blocks_of([ratio] * 8, base), metric=metric, limit=replace(LIMIT, floor=floor)) for floor in (3, 1)
        )
        assert wide.outcome is Outcome.UNCHANGED
        assert narrow.outcome in moves


class TestBadInput:
    """Input that gives no verdict."""

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0, -1.0, True, "4.2", None])
    @pytest.mark.parametrize("side", ["base", "head"])
    def test_invalid(self, side, value):
        """One bad value makes the cell invalid, and the reason names it."""
        blocks = blocks_of([2.0] * 8)
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
        assert judged(blocks_of([ratio] * 8)).outcome in moves
        blocks = [Block(base=5e-324, head=sys.float_info.max, base_first=bool(i % 2)) for i in range(8)]
        for metric, expected in ((TPOT, Outcome.REGRESSED), (RATE, Outcome.IMPROVED)):
            verdict = judged(blocks, metric=metric, limit=replace(LIMIT, floor=0.05))
            assert verdict.outcome is expected
            assert sentence(verdict)


class TestGuards:
    """Guards reject significant results."""

    def test_the_median_block_must_move(self):
        """A mean that rests on a few blocks is rejected, even with a small p-value."""
        verdict = judged(blocks_of(np.random.default_rng(1).permutation([1.2] * 22 + [1.005] * 26)), alpha=0.05)
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
        found = [outcome(np.exp(rng.normal(0.25, 0.03, blocks))) for blocks in (8, 12) for _ in range(100)]
        assert np.mean([found is Outcome.REGRESSED for found in found]) > 0.9

    def test_unchanged_needs_no_guard(self):
        """A drift that returns to its start is still not a regression."""
        assert outcome(np.exp(np.linspace(-0.01, 0.01, 24))) is Outcome.UNCHANGED


class TestVariance:
    """Variance of a block: of the blocks, of their mirrored pairs, and of what other cells have in common."""

    def test_mirrored_pairs_add_degrees_of_freedom(self):
        """Eight blocks have seven of their own, less four that trimming takes, and one for each pair."""
        blocks = mirrored(np.random.default_rng(SEED), 8, 0.02)
        alone = [replace(block, pair=None) for block in blocks]
        assert (block_variance(TPOT, alone).df, block_variance(TPOT, blocks).df) == (5, 9)

    def test_it_is_that_of_one_difference(self):
        """Twice that of a process, by both estimates."""
        rng = np.random.default_rng(SEED)
        found = [block_variance(TPOT, mirrored(rng, 6, 0.02)) for _ in range(2000)]
        assert np.mean([one.value for one in found]) == pytest.approx(2 * 0.02**2, rel=0.05)
        assert np.var([one.value for one in found]) == pytest.approx(2 * (2 * 0.02**2) ** 2 / found[0].df, rel=0.2)

    def test_a_pair_without_its_mirror_adds_nothing(self):
        """A block that was disturbed leaves one that has none, and two in the same order are no mirror."""
        blocks = mirrored(np.random.default_rng(SEED), 6, 0.02)
        assert block_variance(TPOT, blocks[:3]).df == 3
        assert block_variance(TPOT, [blocks[0], blocks[2]]).df == 1
        assert block_variance(TPOT, [blocks[0], replace(blocks[1], base_first=blocks[0].base_first)]).df == 1

    def test_two_modes(self):
        """Eight blocks with head in a 12 % slower mode regress alone, and not beside cells that vary as much."""
        blocks = blocks_of(noise(8, 0.005), shift=0.12)
        assert judged(blocks).outcome is Outcome.REGRESSED
        assert judged(blocks, typical=Variance(2 * 0.12**2, 8.0)).outcome is Outcome.INCONCLUSIVE

    def test_the_interval_reflects_it(self):
        """Three degrees of freedom of four equal blocks and six of other cells."""
        interval = judged(blocks_of([1.0] * 4), typical=Variance(0.03**2, 6.0)).interval
        sd = math.sqrt((6 * 0.03**2) / 9)
        assert math.log(interval.high) == pytest.approx(2.262 * sd / 2, rel=1e-3)

    @given(many_ratios, st.floats(0, 0.2), st.floats(0, 0.2))
    def test_more_variance_is_never_more_lenient(self, values, some, other):
        """A change found beside cells that vary more is also found beside cells that vary less."""
        less, more = (
            judged(blocks_of(values), final=True, typical=Variance(sd**2, 6.0)).outcome for sd in sorted([some, other])
        )
        assert more not in moves or less is more


class TestNullControl:
    """Null control: a side against itself."""

    def test_trips_only_where_something_moved(self):
        """A quiet control passes; one that changed in either direction trips, also between looks."""
        assert not null_trips(blocks_of(noise(9, 0.01)), TPOT, LIMIT)
        assert null_trips(blocks_of([1.1] * 9), TPOT, LIMIT)
        assert null_trips(blocks_of([0.9] * 9), TPOT, LIMIT)

    def test_too_few_blocks_never_trip(self):
        """Seven blocks decide nothing in a control either."""
        assert not null_trips(blocks_of([1.5] * 7), TPOT, LIMIT)

    def test_each_side_is_its_own_control(self):
        """The process that ran first in its block against the one that ran second in the other block."""
        one = Block(base=1.0, head=3.0, base_first=True, pair=0)
        other = Block(base=2.0, head=4.0, base_first=False, pair=0)
        assert null_blocks([one, other]) == [
            Block(base=1.0, head=2.0, base_first=True),
            Block(base=4.0, head=3.0, base_first=False),
        ]
        assert null_blocks([one]) == []

    @given(st.floats(0.5, 2.0), st.floats(-0.3, 0.3), st.integers(4, 20))
    def test_a_change_of_the_code_is_none_of_the_control(self, ratio, second, pairs):
        """Only what running second costs is."""
        blocks = []
        for i in range(2 * pairs):
            first = i % 4 in {0, 3}
            late = math.exp(second)
            blocks.append(Block(base=1.0 if first else late, head=ratio * (late if first else 1.0), base_first=first,
                                pair=i // 2))  # fmt: skip
        assert [block.head / block.base for block in null_blocks(blocks)] == pytest.approx([late] * 2 * pairs)

    @pytest.mark.parametrize(("ratio", "vetoed"), [(1.2, True), (0.8, True), (1.0, False)])
    def test_veto(self, ratio, vetoed):
        """A veto makes changes inconclusive and keeps other outcomes."""
        verdict = judged(blocks_of([ratio] * 8))
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
    """Return the outcome of one cell that is tested at each look until it is decided; ``sd`` is that of a block."""
    blocks = mirrored(rng, LOOKS[-1], sd / math.sqrt(2), mean)
    for look in LOOKS:
        verdict = judged(blocks[:look], alpha=alpha)
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
