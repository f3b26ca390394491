"""Paired verdict: a group sequential t test on blocks of base and head processes on one machine.

Both processes of a block run in the same minute, so the machine's state cancels in their ratio. A t test of ln(head) -
ln(base) against the margin is evaluated after fixed numbers of blocks and stops when it is conclusive. `trimmed_mean`
limits the influence of outlying blocks, `alpha_spending` keeps the error over all looks at its level, and
`paired_guards` rejects results that rest on a few blocks, a drift or the order within blocks.
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
"""Numbers of blocks after which the test is evaluated."""

ALPHA = 0.05
"""Probability, over all looks, that a cell is called regressed (and separately, improved) at the margin itself."""

BETA = 0.05
"""Probability that a slowdown of the limit's ``catch`` is called unchanged."""

_POWER = 0.9
"""Probability that a detectable change is found."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """One base and one head process run together: their figures in the metric's unit."""

    base: float
    head: float
    base_first: bool


@dataclass(frozen=True, kw_only=True)
class _Evidence:
    """Mean change for the worse ``d`` in ln(value) over the blocks, and its standard error ``se``."""

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
    noise: float = 0.0,
    workload: str = "",
) -> Verdict:
    """Return the verdict on one timed cell from its blocks, in the order in which they ran.

    ``regressed`` is a change for the worse beyond ``limit.tolerate``, and ``improved`` mirrors it. ``unchanged`` rules
    out a change for the worse of ``limit.catch``. Anything else is ``inconclusive``, as is any number of blocks that is
    not in `LOOKS`. If no more blocks will follow (``final``), the level of the last look passed applies instead. The
    error spent up to that look and the error of this extra test are together below ``alpha``.

    Args:
        test: the test's name.
        metric: the metric.
        limit: the change that the cell accepts and the one it must catch; a difference below its floor is no change.
        blocks: at least one.
        alpha: error probability of this cell over all looks: the family's level / number of judged cells.
        final: whether no more blocks will follow.
        noise: standard deviation of ln(value) of one run, as the null control shows it. The blocks' standard deviation
            is assumed to be at least that of the difference of two such runs, since four blocks often agree by chance
            if processes fall into a fast and a slow mode.
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
    """Return whether a null control (base against base) comes out regressed, improved or invalid.

    The rule is that of `judge_paired` with ``final``, so fewer blocks than the first look never trip. If it trips,
    something other than the code changes the figures, and no change found in that session is valid.

    Raises:
        ValueError: there is no block, or ``alpha`` is not between 0 and 0.5.
    """
    verdict = judge_paired(
        test="null control", metric=metric, limit=limit, blocks=blocks, alpha=alpha, final=True, noise=noise
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
    df = Location.of([0.0] * LOOKS[-1]).df
    reach = quantile(nominal_levels(alpha, LOOKS, late)[-1], df) + quantile(1 - _POWER, df)
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


def _evidence(cell: Cell, blocks: Sequence[Block], noise: float) -> _Evidence:
    """Compute the evidence of the blocks, with a lower limit on their spread; the cell's value is head's."""
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
        if evidence.p_worse <= alpha and beyond_floor:
            why = doubt(evidence.differences, evidence.base_first, evidence.margin)
            return (Outcome.INCONCLUSIVE, why) if why else (outcome, "")
    if found.p_caught <= beta:
        return Outcome.UNCHANGED, ""
    catch = percent(found.cell.limit.catch)
    return Outcome.INCONCLUSIVE, f"a change for the worse of {catch} is neither shown nor ruled out"
