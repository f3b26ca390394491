"""Judge a series of blocks: the verdict of each cell so far, and which tests need more blocks."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from pytest_llmperf.ab.blocks import MeasuredBlock, pair_of
from pytest_llmperf.metrics import METRICS, Kind, Limit, Metric
from pytest_llmperf.stats.moderated_variance import UNKNOWN, Variance, typical_variance
from pytest_llmperf.storage.process_result import ProcessResult
from pytest_llmperf.storage.schema import Workload
from pytest_llmperf.verdict.device_factor import device_difference
from pytest_llmperf.verdict.judge import is_judged, judge
from pytest_llmperf.verdict.model import Cell, CellKey, Outcome, Sample, Verdict
from pytest_llmperf.verdict.paired import (
    ALPHA,
    LOOKS,
    Block,
    block_variance,
    change,
    judge_paired,
    null_blocks,
    null_trips,
    veto,
)

TO_CONFIRM = 2
"""Blocks that show whether an exact figure that differs between the sides varies on one of them."""


def _unknown(_blocks: int) -> Variance:
    return UNKNOWN


@dataclass(frozen=True)
class Pairs:
    """Values of one cell, block by block; text if the metric is a text."""

    key: CellKey
    limit: Limit
    numbers: list[int]
    """Numbers of the blocks, from 1: 1 and 2 mirror each other, as do 3 and 4."""
    base: list[int | float | str]
    head: list[int | float | str]
    base_first: list[bool]
    devices: list[str]
    """On which each block was measured."""

    @property
    def metric(self) -> Metric:
        """The cell's metric."""
        return METRICS[self.key[2]]

    @cached_property
    def is_timed(self) -> bool:
        """Whether the cell needs blocks: a timed metric, or an exact one that varies on one side."""
        if self.metric.kind is Kind.TIMED:
            return True
        return self.metric.kind is Kind.EXACT and (len({*self.base}) > 1 or len({*self.head}) > 1)

    @cached_property
    def blocks(self) -> list[Block]:
        """Pairs of base and head."""
        return [
            Block(base=_number(base), head=_number(head), base_first=first, pair=pair_of(number))
            for number, base, head, first in zip(self.numbers, self.base, self.head, self.base_first, strict=True)
        ]

    def first(self, count: int) -> Pairs:
        """Return the pairs of the first blocks alone."""
        sides = (self.base[:count], self.head[:count])
        more = (self.base_first[:count], self.devices[:count])
        return Pairs(self.key, self.limit, self.numbers[:count], *sides, *more)

    def verdict(self, alpha: float, *, final: bool, typical: Callable[[int], Variance] = _unknown) -> Verdict:
        """Return the verdict of the first look that decided; later blocks, for other cells, do not change it.

        Args:
            alpha: error probability of this cell over all looks.
            final: whether no more blocks will follow.
            typical: variance that the cells have in common after so many blocks.
        """
        for look in (look for look in LOOKS if look < len(self.head)):
            verdict = self.first(look).verdict_now(alpha, final=False, typical=typical(look))
            if verdict.outcome.decided:
                return verdict
        return self.verdict_now(alpha, final=final, typical=typical(len(self.head)))

    def verdict_now(self, alpha: float, *, final: bool, typical: Variance = UNKNOWN) -> Verdict:
        """Return the verdict of all blocks together."""
        test, workload, _ = self.key
        return judge_paired(
            test=test,
            workload=workload,
            metric=self.metric,
            limit=self.limit,
            blocks=self.blocks,
            alpha=alpha,
            final=final,
            typical=typical,
        )

    def null_trips(self, alpha: float, *, typical: Variance = UNKNOWN) -> bool:
        """Whether a side against itself would be judged as changed."""
        found = null_blocks(self.blocks)
        return bool(found) and null_trips(found, self.metric, self.limit, alpha, typical=typical)

    def device_difference(self, alpha: float, *, typical: Variance = UNKNOWN) -> str:
        """Return how the change differs between devices; empty if it does not."""
        found: defaultdict[str, list[Block]] = defaultdict(list)
        for device, block in zip(self.devices, self.blocks, strict=True):
            found[device].append(block)
        known = len(found) > 1 and self._has_logarithms
        return device_difference(self.metric, self.limit, found, alpha, typical=typical) if known else ""

    @property
    def variance(self) -> Variance:
        """Variance of one block; unknown if a figure has no logarithm."""
        return block_variance(self.metric, self.blocks) if self._has_logarithms and self.blocks else UNKNOWN

    @property
    def changes(self) -> list[float]:
        """The change of each block whose figures have a logarithm: ln(head / base), more being worse."""
        return [change(self.metric, block) for block in self.blocks if _has_logarithms(block)]

    @property
    def _has_logarithms(self) -> bool:
        return all(map(_has_logarithms, self.blocks))


class TypicalVariance:
    """Variance of a block that cells have in common; called with a number of blocks.

    Only cells that were still measured then count. Cells that were decided earlier are those whose few blocks happened
    to agree, so they would make it too small. If few are left, what was known at the look before applies.
    """

    def __init__(self, cells: Sequence[Pairs]) -> None:
        self._cells = cells
        self._found: dict[int, Variance] = {}

    def __call__(self, blocks: int) -> Variance:
        """Return what is known after so many blocks; unknown if there were few cells from the start."""
        if blocks not in self._found:
            variances = [pairs.first(blocks).variance for pairs in self._cells if len(pairs.head) >= blocks]
            before = max((look for look in LOOKS if look < blocks), default=0)
            self._found[blocks] = typical_variance(variances) or (self(before) if before else UNKNOWN)
        return self._found[blocks]


class Standing:
    """Verdicts of a series of blocks so far.

    Args:
        blocks: at least one.
        final: whether no block will follow.
    """

    def __init__(self, blocks: Sequence[MeasuredBlock], *, final: bool = False) -> None:
        self._blocks = blocks
        self.final = final
        self._base, self._head = blocks[0].arms["base"], blocks[0].arms["head"]

    @property
    def tests(self) -> list[str]:
        """Every test of head, in order."""
        measured = [test for test, _, _ in self._head.values]
        return list(dict.fromkeys([*measured, *self._head.notes]))

    @property
    def missing(self) -> list[str]:
        """Tests of base that head lacks. Those that head collected and did not run, as after ``-x``, do not count."""
        known = {test for test, _, _ in self._base.values}
        found = [proof.collected for block in self._blocks if (proof := block.imported.get("head"))]
        return sorted(known - set(self.tests) - {test for tests in found for test in tests})

    @property
    def undecided(self) -> list[str]:
        """Tests that more blocks may decide."""
        waiting = {verdict.cell.test for verdict in self._waiting}
        return [test for test in self.tests if test in waiting]

    @property
    def needs_exact(self) -> bool:
        """Whether more blocks must measure exact figures: the present blocks do not decide them all.

        Equal exact figures need one block. Those that differ need another one, which shows whether they vary.
        """
        return any(verdict.cell.metric.kind is Kind.EXACT for verdict in self._waiting)

    def error(self, test: str) -> str:
        """Return why head could not measure a test, in any block; empty if it could."""
        notes = [block.arms["head"].notes.get(test) for block in self._blocks]
        return next((note.error for note in notes if note and note.error), "")

    @cached_property
    def verdicts(self) -> list[Verdict]:
        """One verdict per judged cell; a change is vetoed if base against base changed as well.

        A cell whose change depends on the device is undecided.
        """
        reason, differences = self.null_trip, self.device_differences
        paired = [_undecided(verdict, differences.get(verdict.cell.key, "")) for verdict in self._paired]
        found = [*paired, *self._exact, *self._unpaired]
        return [veto(verdict, reason) if reason and verdict.blocks else verdict for verdict in found]

    @cached_property
    def device_differences(self) -> Mapping[CellKey, str]:
        """How the change of some gating timed cells differs between the devices of this series."""
        found = {
            pairs.key: pairs.device_difference(self.alpha, typical=self._typical(len(pairs.head)))
            for pairs in self.timed
            if pairs.limit.gates
        }
        return {key: difference for key, difference in found.items() if difference}

    @cached_property
    def null_trip(self) -> str:
        """Why no change in this series is valid: the A/A control changed. Empty if it did not."""
        for pairs in self.timed:
            if pairs.limit.gates and pairs.null_trips(self.alpha, typical=self._typical(len(pairs.head))):
                what = f"{pairs.metric.name} of {pairs.key[0]}"
                return f"the same code differs from itself in {what}: noise of the machine, not the code"
        return ""

    def variance(self, pairs: Pairs) -> Variance:
        """Return the variance of one block of a cell, pooled with what the cells have in common."""
        return pairs.variance.pooled(self._typical(len(pairs.head)))

    @cached_property
    def _typical(self) -> TypicalVariance:
        return TypicalVariance([pairs for pairs in self.timed if pairs.limit.gates])

    @cached_property
    def _waiting(self) -> list[Verdict]:
        """Verdicts that more blocks may decide."""
        disturbed = [verdict for verdict in self._unpaired if verdict.outcome is Outcome.INVALID]
        found = [verdict for verdict in (*self._paired, *disturbed) if not verdict.outcome.decided]
        return [verdict for verdict in (*found, *self._unconfirmed) if verdict.counts]

    @property
    def _unconfirmed(self) -> list[Verdict]:
        """Verdicts on exact figures that differ between the sides of a single block."""
        return [
            verdict
            for verdict in self._exact
            if verdict.outcome in {Outcome.REGRESSED, Outcome.IMPROVED}
            and len(self._pairs[verdict.cell.key].head) < TO_CONFIRM
        ]

    @cached_property
    def _paired(self) -> list[Verdict]:
        return [pairs.verdict(self.alpha, final=self.final, typical=self._typical) for pairs in self.timed]

    @cached_property
    def _exact(self) -> list[Verdict]:
        return [_judge_exact(pairs) for pairs in self._pairs.values() if not pairs.is_timed]

    @cached_property
    def timed(self) -> list[Pairs]:
        """The cells that need blocks."""
        return [pairs for pairs in self._pairs.values() if pairs.is_timed]

    @cached_property
    def alpha(self) -> float:
        """Significance level of each cell: the family's, divided by the number of cells that could fail."""
        return ALPHA / max(1, sum(pairs.limit.gates for pairs in self.timed))

    @cached_property
    def _pairs(self) -> dict[CellKey, Pairs]:
        judged = filter(self._is_judged, self._head.values)
        found = {key: _pairs(key, self._head.limit(key), self._blocks) for key in judged}
        return {key: pairs for key, pairs in found.items() if pairs.head}

    def _is_judged(self, key: CellKey) -> bool:
        return key[2] in METRICS and is_judged(METRICS[key[2]]) and not self.error(key[0])

    @cached_property
    def _unpaired(self) -> list[Verdict]:
        """Verdicts of head's cells that no block pairs: new, of another workload, or disturbed each time."""
        return [
            self._unpaired_verdict(key, value)
            for key, value in self._head.values.items()
            if self._is_judged(key) and key not in self._pairs
        ]

    def _unpaired_verdict(self, key: CellKey, value: float | str | None) -> Verdict:
        cell = Cell.of(key, self._head.limit(key), value)
        outcome, reason = self._why_not(key)
        return Verdict(cell=cell, outcome=outcome, kind=cell.metric.kind, reason=reason)

    def _why_not(self, key: CellKey) -> tuple[Outcome, str]:
        test, workload, metric = key
        if key in self._base.values and (disturbed := self._why_invalid(key)):
            return Outcome.INVALID, f"none of its blocks is valid: {disturbed}"
        if self._head.values[key] is None:
            return Outcome.NEW, "not measured on head"
        others = sorted({other for name, other, _ in self._base.values if name == test})
        if others and workload not in others:
            nearest = min(
                (_workload(self._head, workload).differences(_workload(self._base, o)) for o in others), key=len
            )
            return Outcome.NOT_COMPARABLE, "workload " + ", ".join(nearest)
        note = self._base.notes.get(test)
        why = f"base could not measure it: {note.error}" if note and note.error else f"base has no {metric} of it"
        return Outcome.NEW, why

    def _why_invalid(self, key: CellKey) -> str:
        arms = [arm for block in self._blocks for arm in block.arms.values()]
        return next((arm.invalid[key] for arm in arms if key in arm.invalid), "")


def _pairs(key: CellKey, limit: Limit, blocks: Iterable[MeasuredBlock]) -> Pairs:
    """Return the cell's values from the blocks in which both processes measured it."""
    pairs = Pairs(key, limit, [], [], [], [], [])
    for block in blocks:
        base, head = (block.arms[arm].values.get(key) for arm in ("base", "head"))
        if base is not None and head is not None:
            pairs.numbers.append(block.number)
            pairs.base.append(base)
            pairs.head.append(head)
            pairs.base_first.append(block.base_first)
            pairs.devices.append(block.device)
    return pairs


def _undecided(verdict: Verdict, reason: str) -> Verdict:
    return replace(verdict, outcome=Outcome.INCONCLUSIVE, reason=reason) if reason and verdict.blocks else verdict


def _has_logarithms(block: Block) -> bool:
    return all(0 < figure < math.inf for figure in (block.base, block.head))


def _judge_exact(pairs: Pairs) -> Verdict:
    samples = [
        Sample(run_id=f"base {number}", session_id="paired", value=value)
        for number, value in enumerate(pairs.base, start=1)
    ]
    return judge(Cell.of(pairs.key, pairs.limit, pairs.head[0], samples))


def _workload(arm: ProcessResult, name: str) -> Workload:
    if arm.baseline is None:
        raise LookupError(name)
    return arm.baseline.workloads[name]


def _number(value: float | str) -> float:
    return float("nan") if isinstance(value, str) else float(value)
