"""The paired verdict: fresh processes of two revisions side by side on one machine, until the answer is clear.

Both processes of a block share the machine's mood of that minute, so their ratio does not hold it. A t test of ln(head)
- ln(base) over blocks, against the margin, is looked at after fixed numbers of blocks and stops for either answer;
`location` lets wild blocks count for less, `spending` keeps the error of all looks together at its level, and `guards`
keep a few blocks, a drift or the order within blocks from deciding.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pytest_llmperf.metrics import Kind, Limit, Metric
from pytest_llmperf.stats.alpha_spending import even, late, nominal_levels
from pytest_llmperf.stats.student_t import SD_FLOOR, bounded_exp, quantile, ratio_interval, upper_tail
from pytest_llmperf.stats.trimmed_mean import Location
from pytest_llmperf.text import plural
from pytest_llmperf.verdict.judge import problem
from pytest_llmperf.verdict.model import Cell, Outcome, Sample, Verdict, percent
from pytest_llmperf.verdict.paired_guards import doubt
from pytest_llmperf.verdict.screen import limit_ratio
from pytest_llmperf.verdict.window_stats import oriented

LOOKS: tuple[int, ...] = (4, 6, 8, 12, 16, 24)
"""The numbers of blocks after which a decision may be taken."""

ALPHA = 0.05
"""How often one cell may come out regressed (or, apart from that, improved) by all looks, at the margin itself."""

BETA = 0.05
"""How often a slowdown of the limit's ``catch`` may be called unchanged."""

_POWER = 0.9
"""How often a detectable change is found."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """One fresh base process beside one fresh head process: their figures in the metric's unit."""

    base: float
    head: float
    base_first: bool


@dataclass(frozen=True, kw_only=True)
class _Evidence:
    """What the blocks say of a change for the worse in ln(value): its mean ``d`` and that one's standard error."""

    cell: Cell
    baseline: float
    now: float
    differences: Sequence[float]
    base_first: Sequence[bool]
    d: float
    se: float
    df: int

    @property
    def margin(self) -> float:
        return math.log1p(self.cell.limit.tolerate)

    @property
    def p_worse(self) -> float:
        """One-sided p of a change for the worse within the margin."""
        return upper_tail((self.d - self.margin) / self.se, self.df)

    @property
    def p_caught(self) -> float:
        """One-sided p of a change for the worse as large as the limit must catch, or the floor if that is wider."""
        limit = limit_ratio(self.cell, self.baseline)
        catch = max(math.log1p(self.cell.limit.catch), abs(math.log(limit)) if limit else math.inf)
        return upper_tail((catch - self.d) / self.se, self.df)

    @property
    def mirrored(self) -> _Evidence:
        """The same blocks where more is better."""
        return replace(self, d=-self.d, differences=[-difference for difference in self.differences])


def next_look(blocks: int) -> int | None:
    """The smallest number of blocks above ``blocks`` at which a decision may be taken; none after the last."""
    return next((look for look in LOOKS if look > blocks), None)


def judge_paired(  # noqa: PLR0913  # a cell's coordinates, its evidence and three settings
    *,
    test: str,
    metric: Metric,
    limit: Limit,
    blocks: Sequence[Block],
    alpha: float = ALPHA,
    final: bool = False,
    noise: float = 0.0,
    workload: str = "",
) -> Verdict:
    """The verdict on one timed cell from blocks in the order in which they ran.

    ``regressed`` is a change for the worse beyond ``limit.tolerate``; ``improved`` mirrors it; ``unchanged`` says that
    a change for the worse of ``limit.catch`` is ruled out. Anything else is ``inconclusive``, and so is any number of
    blocks that is not one of `LOOKS`, unless no block will follow (``final``): then the level of the last look passed
    applies. What was spent by that look and this one more level are together below ``alpha``.

    Args:
        test: the test's name.
        metric: what was measured.
        limit: what the cell accepts and must catch; a difference below its floor is no change.
        blocks: at least one.
        alpha: how often this cell may err by all looks together: the family's level / cells that are judged.
        final: whether no block will follow.
        noise: the standard deviation of ln(value) of one run that is known from before (`prior.known_noise`). Blocks
            are not believed to spread by less than two such runs: four of them agree by chance often enough where
            processes fall into a fast and a slow mode.
        workload: the hash of what was measured, part of the cell's key.

    Returns:
        A verdict with the geometric means of head and base, their ratio and its interval (at 95 %, of the blocks so
        far, not widened for the looks taken), all of them trimmed from eight blocks on. Values that are not numbers
        above 0 make it ``invalid``.

    Raises:
        ValueError: there is no block, or ``alpha`` is not between 0 and 0.5.
    """
    if not blocks:
        raise ValueError("no blocks to judge")
    levels = nominal_levels(alpha, LOOKS, late)
    cell = Cell(test=test, metric=metric, limit=limit, value=None, window=_window(blocks), workload=workload)
    if wrong := _first_problem(blocks):
        return _verdict(cell, blocks, Outcome.INVALID, wrong)
    found = _evidence(cell, blocks, noise)
    outcome, reason = Outcome.INCONCLUSIVE, _outlook(len(blocks), final=final)
    if (look := _look(len(blocks), final=final)) is not None:
        outcome, obstacle = _decide(found, levels[look], nominal_levels(BETA, LOOKS, even)[look])
        reason = "" if outcome.decided else f"{obstacle} ({reason})"
    sign = metric.better.sign
    return replace(
        _verdict(found.cell, blocks, outcome, reason),
        baseline=found.baseline,
        ratio=bounded_exp(sign * found.d),
        interval=ratio_interval(sign * found.d, found.se, found.df) if found.df else None,
        limit_ratio=limit_ratio(cell, found.baseline),
        p_value=None if look is None else _p_value(found, outcome),
    )


def _p_value(found: _Evidence, outcome: Outcome) -> float:
    return found.mirrored.p_worse if outcome is Outcome.IMPROVED else found.p_worse


def null_trips(
    blocks: Sequence[Block], metric: Metric, limit: Limit, alpha: float = ALPHA, *, noise: float = 0.0
) -> bool:
    """Whether base beside base would come out regressed or improved, or could not be judged at all.

    The rule is that of `judge_paired` with no block to follow: fewer blocks than its first look never trip. Where it
    trips, something other than the code moves the figures, and no change found in that session stands.

    Raises:
        ValueError: there is no block, or ``alpha`` is not between 0 and 0.5.
    """
    verdict = judge_paired(
        test="null control", metric=metric, limit=limit, blocks=blocks, alpha=alpha, final=True, noise=noise
    )
    return verdict.outcome in {Outcome.REGRESSED, Outcome.IMPROVED, Outcome.INVALID}


def detectable_change(spread: float, limit: Limit, *, alpha: float = ALPHA) -> float:
    """The change for the worse, as a share, that all blocks together find nine times in ten.

    That is the power of the last look alone, with no guard in the way; `LOOKS` before it may find it sooner.

    Args:
        spread: standard deviation of ln(head / base) over blocks.
        limit: what the cell accepts.
        alpha: as `judge_paired` takes it.
    """
    df = Location.of([0.0] * LOOKS[-1]).df
    reach = quantile(nominal_levels(alpha, LOOKS, late)[-1], df) + quantile(1 - _POWER, df)
    return math.expm1(math.log1p(limit.tolerate) + reach * max(spread, SD_FLOOR) / math.sqrt(LOOKS[-1]))


def veto(verdict: Verdict, reason: str) -> Verdict:
    """That verdict, but inconclusive for that reason if it said that something changed."""
    if verdict.outcome not in {Outcome.REGRESSED, Outcome.IMPROVED}:
        return verdict
    return replace(verdict, outcome=Outcome.INCONCLUSIVE, reason=reason)


def _window(blocks: Sequence[Block]) -> list[Sample]:
    return [
        Sample(run_id=f"block {i}", session_id="paired", value=block.base) for i, block in enumerate(blocks, start=1)
    ]


def _first_problem(blocks: Sequence[Block]) -> str:
    for i, block in enumerate(blocks, start=1):
        for side, value in (("base", block.base), ("head", block.head)):
            if wrong := problem(Kind.TIMED, value):
                return f"{wrong} as {side} of block {i}"
    return ""


def _verdict(cell: Cell, blocks: Sequence[Block], outcome: Outcome, reason: str) -> Verdict:
    count = len(blocks)
    return Verdict(cell=cell, outcome=outcome, kind=Kind.TIMED, reason=reason, runs=count, sessions=1, blocks=count)


def _evidence(cell: Cell, blocks: Sequence[Block], noise: float) -> _Evidence:
    """The evidence of the blocks, no spread believed to be below the floor; the cell's value is head's."""
    differences = [oriented(cell.metric, block.head) - oriented(cell.metric, block.base) for block in blocks]
    found = Location.of(differences, spread=max(math.sqrt(2) * noise, SD_FLOOR))
    baseline, now = _center([block.base for block in blocks]), _center([block.head for block in blocks])
    return _Evidence(
        cell=replace(cell, value=now),
        baseline=baseline,
        now=now,
        differences=differences,
        base_first=[block.base_first for block in blocks],
        d=found.mean,
        se=found.se,
        df=found.df,
    )


def _center(figures: Sequence[float]) -> float:
    return bounded_exp(Location.of([math.log(figure) for figure in figures]).mean)


def _look(blocks: int, *, final: bool) -> int | None:
    """Which look, counted from 0, decides on that many blocks; none if it is not the time to decide."""
    passed = bisect_right(LOOKS, blocks) - 1
    decides = blocks in LOOKS or final or next_look(blocks) is None
    return passed if decides and passed >= 0 else None


def _outlook(blocks: int, *, final: bool) -> str:
    if final:
        return f"budget ran out after {plural(blocks, 'block')}"
    if (look := next_look(blocks)) is None:
        return f"after {plural(blocks, 'block')}, the last look"
    return f"{plural(look - blocks, 'more block')} until the next look"


def _decide(found: _Evidence, alpha: float, beta: float) -> tuple[Outcome, str]:
    """What one look decides, and if nothing, why: a change that a guard doubts is not unchanged either."""
    beyond_floor = abs(found.now - found.baseline) > found.cell.limit.floor
    for evidence, outcome in ((found, Outcome.REGRESSED), (found.mirrored, Outcome.IMPROVED)):
        if evidence.p_worse <= alpha and beyond_floor:
            why = doubt(evidence.differences, evidence.base_first, evidence.margin)
            return (Outcome.INCONCLUSIVE, why) if why else (outcome, "")
    if found.p_caught <= beta:
        return Outcome.UNCHANGED, ""
    catch = percent(found.cell.limit.catch)
    return Outcome.INCONCLUSIVE, f"a change for the worse of {catch} is neither shown nor ruled out"
