"""Paired verdict: a group sequential t test on blocks of base and head processes on one machine.

Both processes of a block run in the same minute, so the machine's state cancels in their ratio. A t test of ln(head) -
ln(base) against the margin is evaluated after fixed numbers of blocks and stops when it is conclusive. `trimmed_mean`
limits the influence of outlying blocks, `alpha_spending` keeps the error over all looks at its level, and
`paired_guards` rejects results that rest on a few blocks, a drift or the order within blocks. The variance is that of
the blocks, of what both blocks of a pair have in common, and of the other cells of the comparison
(`moderated_variance`).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from pytest_llmperf.metrics import Kind, Limit, Metric
from pytest_llmperf.stats.alpha_spending import Spending, even, late, nominal_levels
from pytest_llmperf.stats.moderated_variance import UNKNOWN, Variance
from pytest_llmperf.stats.student_t import SD_FLOOR, bounded_exp, quantile, ratio_interval, upper_tail
from pytest_llmperf.stats.trimmed_mean import Location, spread_around_zero
from pytest_llmperf.text import plural
from pytest_llmperf.verdict.judge import problem
from pytest_llmperf.verdict.model import Cell, Outcome, Sample, Verdict, percent
from pytest_llmperf.verdict.paired_guards import doubt
from pytest_llmperf.verdict.screen import limit_ratio
from pytest_llmperf.verdict.window_stats import oriented

LOOKS: tuple[int, ...] = (2, 4, 6, 8, 12, 16, 24, 36, 48)
"""Numbers of blocks after which the test is evaluated."""

FEWEST_TO_CHANGE = 8
"""Minimum number of blocks that show a change: if processes fall into a fast and a slow mode, fewer agree by chance."""

_CHANGE_LOOKS = tuple(look for look in LOOKS if look >= FEWEST_TO_CHANGE)

ALPHA = 0.01
"""Probability, over all looks, that a cell is called regressed (and separately, improved) at the margin itself."""

BETA = 0.05
"""Probability that a slowdown of the limit's ``catch`` is called unchanged."""

_HALF = 0.5
_POWER = 0.9
"""Probability that a detectable change is found."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """One base and one head process run together: their figures in the metric's unit."""

    base: float
    head: float
    base_first: bool
    pair: int | None = None
    """Number of its mirrored pair: two blocks in a row, of which one ran base first and the other head."""


@dataclass(frozen=True, kw_only=True)
class _Evidence:
    """Mean change for the worse ``d`` in ln(value) over the blocks, and the variance of one block."""

    cell: Cell
    baseline: float
    now: float
    differences: Sequence[float]
    base_first: Sequence[bool]
    d: float
    variance: Variance

    @property
    def se(self) -> float:
        """Standard error of ``d``."""
        return self.variance.sd / math.sqrt(len(self.differences))

    @property
    def df(self) -> float:
        """Degrees of freedom of ``se``."""
        return self.variance.df

    @property
    def margin(self) -> float:
        return math.log1p(self.cell.limit.tolerate)

    @property
    def p_worse(self) -> float:
        """One-sided p-value of the null hypothesis that the change for the worse is within the margin."""
        return upper_tail((self.d - self.margin) / self.se, self.df)

    @property
    def p_caught(self) -> float:
        """One-sided p-value of a change for the worse of ``catch``, or of the floor if that is wider."""
        limit = limit_ratio(self.cell, self.baseline)
        catch = max(math.log1p(self.cell.limit.catch), abs(math.log(limit)) if limit else math.inf)
        return upper_tail((catch - self.d) / self.se, self.df)

    @property
    def mirrored(self) -> _Evidence:
        """The same blocks with the sign of the change reversed."""
        return replace(self, d=-self.d, differences=[-difference for difference in self.differences])


def next_look(blocks: int) -> int | None:
    """Return the smallest look above ``blocks``; ``None`` after the last."""
    return next((look for look in LOOKS if look > blocks), None)


def judge_paired(  # noqa: PLR0913  # a cell's coordinates, its evidence and three settings
    *,
    test: str,
    metric: Metric,
    limit: Limit,
    blocks: Sequence[Block],
    alpha: float = ALPHA,
    final: bool = False,
    typical: Variance = UNKNOWN,
    workload: str = "",
) -> Verdict:
    """Return the verdict on one timed cell from its blocks, in the order in which they ran.

    ``regressed`` is a change for the worse beyond ``limit.tolerate``, and ``improved`` mirrors it; both need
    `FEWEST_TO_CHANGE` blocks. ``unchanged`` rules out a change for the worse of ``limit.catch``. Anything else is
    ``inconclusive``, as is any number of blocks that is not in `LOOKS`. If no more blocks will follow (``final``), the
    level of the last look passed applies instead. The error spent up to that look and the error of this extra test are
    together below ``alpha``.

    Args:
        test: the test's name.
        metric: the metric.
        limit: the change that the cell accepts and the one it must catch; a difference below its floor is no change.
        blocks: at least one.
        alpha: error probability of this cell over all looks: the family's level / number of judged cells.
        final: whether no more blocks will follow.
        typical: variance of a block that the cells of the comparison have in common, to pool with this cell's own.
        workload: hash of the workload, part of the cell's key.

    Returns:
        A verdict with the geometric means of head and base, their ratio and its confidence interval (at 95 %, of the
        blocks so far, not widened for the looks taken). All are trimmed from eight blocks on. Values that are not
        numbers above 0 make it ``invalid``.

    Raises:
        ValueError: there is no block, or ``alpha`` is not between 0 and 0.5.
    """
    if not blocks:
        raise ValueError("no blocks to judge")
    if not 0 < alpha < _HALF:
        raise ValueError(f"an error probability of {alpha}: expected one between 0 and 0.5")
    cell = Cell(test=test, metric=metric, limit=limit, value=None, window=_window(blocks), workload=workload)
    if wrong := _first_problem(blocks):
        return _verdict(cell, blocks, Outcome.INVALID, wrong)
    found = _evidence(cell, blocks, typical)
    outcome, reason = Outcome.INCONCLUSIVE, _outlook(len(blocks), final=final)
    if (look := _look(len(blocks), final=final)) is not None:
        outcome, obstacle = _decide(found, _change_level(look, alpha), _level(look, LOOKS, BETA, even))
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


def change(metric: Metric, block: Block) -> float:
    """Return ln(head / base) of a block, more being worse."""
    return oriented(metric, block.head) - oriented(metric, block.base)


def block_variance(metric: Metric, blocks: Sequence[Block]) -> Variance:
    """Estimate the variance of ln(head / base) of one block.

    The differences of the blocks, less their mean, are one estimate. The two blocks of a mirrored pair give another
    one, which is independent of it: the product of a block's two figures differs from that of the other block by the
    noise of four processes. Together, each mirrored pair adds three degrees of freedom to its four processes.
    """
    found = Location.of([change(metric, block) for block in blocks])
    own = Variance(len(blocks) * found.se**2, found.df)
    products = [_product_difference(*pair) for pair in _mirrored(blocks)]
    return own.pooled(Variance(spread_around_zero(products) ** 2, len(products)))


def null_blocks(blocks: Sequence[Block]) -> list[Block]:
    """Return the null control, each side against itself: two blocks for each mirrored pair.

    ``base`` is the process that ran first in its block, and ``head`` the one of the other block, which ran second.
    """
    return [
        _null_block(earlier, later, ran_first=ran_first)
        for one, other in _mirrored(blocks)
        for earlier, later, ran_first in (
            (one.base, other.base, one.base_first),
            (one.head, other.head, not one.base_first),
        )
    ]


def _null_block(earlier: float, later: float, *, ran_first: bool) -> Block:
    """Pair two processes of one side; ``ran_first`` is whether the earlier one ran first in its block."""
    first, second = (earlier, later) if ran_first else (later, earlier)
    return Block(base=first, head=second, base_first=ran_first)


def null_trips(
    blocks: Sequence[Block], metric: Metric, limit: Limit, alpha: float = ALPHA, *, typical: Variance = UNKNOWN
) -> bool:
    """Return whether a null control (a side against itself) comes out regressed, improved or invalid.

    The rule is that of `judge_paired` with ``final``, so fewer than `FEWEST_TO_CHANGE` blocks never trip. If it trips,
    something other than the code changes the figures, and no change found in that session is valid.

    Raises:
        ValueError: there is no block, or ``alpha`` is not between 0 and 0.5.
    """
    verdict = judge_paired(
        test="null control", metric=metric, limit=limit, blocks=blocks, alpha=alpha, final=True, typical=typical
    )
    return verdict.outcome in {Outcome.REGRESSED, Outcome.IMPROVED, Outcome.INVALID}


def detectable_change(spread: float, limit: Limit, *, alpha: float = ALPHA) -> float:
    """Return the minimum detectable effect, as a share, with all blocks and a power of 90 %.

    It is that of the last look alone, without guards; earlier `LOOKS` may find the change sooner.

    Args:
        spread: standard deviation of ln(head / base) over blocks.
        limit: the limit of the cell.
        alpha: as for `judge_paired`.
    """
    df = Location.of([0.0] * LOOKS[-1]).df + LOOKS[-1] / 2
    reach = quantile(_change_level(len(LOOKS) - 1, alpha), df) + quantile(1 - _POWER, df)
    return math.expm1(math.log1p(limit.tolerate) + reach * max(spread, SD_FLOOR) / math.sqrt(LOOKS[-1]))


def veto(verdict: Verdict, reason: str) -> Verdict:
    """Return the verdict, made inconclusive for ``reason`` if it was regressed or improved."""
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


def _evidence(cell: Cell, blocks: Sequence[Block], typical: Variance) -> _Evidence:
    """Compute the evidence of the blocks; the cell's value is head's."""
    differences = [change(cell.metric, block) for block in blocks]
    baseline, now = _center([block.base for block in blocks]), _center([block.head for block in blocks])
    return _Evidence(
        cell=replace(cell, value=now),
        baseline=baseline,
        now=now,
        differences=differences,
        base_first=[block.base_first for block in blocks],
        d=Location.of(differences).mean,
        variance=block_variance(cell.metric, blocks).pooled(typical),
    )


def _product_difference(one: Block, other: Block) -> float:
    """Return the difference of the logarithms of base x head, scaled to the variance of one block's difference."""
    return math.log(one.base / other.base * one.head / other.head) / math.sqrt(2)


def _mirrored(blocks: Sequence[Block]) -> list[tuple[Block, Block]]:
    """Return the pairs of which both blocks are there, in mirrored order."""
    return [
        (one, other)
        for one, other in pairwise(blocks)
        if one.pair is not None and one.pair == other.pair and one.base_first != other.base_first
    ]


def _level(look: int, looks: tuple[int, ...], total: float, spending: Spending) -> float:
    """Return the nominal level of a look by its index in `LOOKS`; 0 before the first of ``looks``."""
    passed = bisect_right(looks, LOOKS[look])
    return nominal_levels(total, looks, spending)[passed - 1] if passed else 0.0


def _change_level(look: int, alpha: float) -> float:
    return _level(look, _CHANGE_LOOKS, alpha, late)


def _center(figures: Sequence[float]) -> float:
    return bounded_exp(Location.of([math.log(figure) for figure in figures]).mean)


def _look(blocks: int, *, final: bool) -> int | None:
    """Return the index of the look that decides on that many blocks; ``None`` if no decision is due."""
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
    """Return the outcome of one look, and why it is inconclusive: a change that a guard rejects is not unchanged."""
    beyond_floor = abs(found.now - found.baseline) > found.cell.limit.floor
    for evidence, outcome in ((found, Outcome.REGRESSED), (found.mirrored, Outcome.IMPROVED)):
        if evidence.p_worse <= alpha > 0 and beyond_floor:
            why = doubt(evidence.differences, evidence.base_first, evidence.margin)
            return (Outcome.INCONCLUSIVE, why) if why else (outcome, "")
    if alpha == 0 and min(found.p_worse, found.mirrored.p_worse) <= ALPHA:
        return Outcome.INCONCLUSIVE, f"a change needs {FEWEST_TO_CHANGE} blocks"
    if found.p_caught <= beta:
        return Outcome.UNCHANGED, ""
    catch = percent(found.cell.limit.catch)
    return Outcome.INCONCLUSIVE, f"a change for the worse of {catch} is neither shown nor ruled out"
