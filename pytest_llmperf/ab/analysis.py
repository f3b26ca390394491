"""Judge a series of blocks: the verdict of each cell so far, and which tests need more blocks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from pytest_llmperf.ab.blocks import MeasuredBlock
from pytest_llmperf.metrics import METRICS, Kind, Limit, Metric
from pytest_llmperf.stats.trimmed_mean import spread_around_zero
from pytest_llmperf.storage.process_result import ProcessResult
from pytest_llmperf.storage.schema import Workload
from pytest_llmperf.verdict.judge import is_judged, judge
from pytest_llmperf.verdict.model import Cell, CellKey, Outcome, Sample, Verdict
from pytest_llmperf.verdict.paired import ALPHA, LOOKS, Block, judge_paired, null_trips, veto


@dataclass(frozen=True)
class Pairs:
    """Values of one cell, block by block; text if the metric is a text."""

    key: CellKey
    limit: Limit
    base: list[int | float | str]
    null: list[int | float | str]
    head: list[int | float | str]
    base_first: list[bool]

    @property
    def metric(self) -> Metric:
        """The cell's metric."""
        return METRICS[self.key[2]]

    @cached_property
    def is_timed(self) -> bool:
        """Whether the cell needs blocks: a timed metric, or an exact one that varies on one side."""
        if self.metric.kind is Kind.TIMED:
            return True
        return self.metric.kind is Kind.EXACT and (len({*self.base, *self.null}) > 1 or len({*self.head}) > 1)

    @property
    def blocks(self) -> list[Block]:
        """Pairs of base, as the geometric mean of its two processes, and head."""
        return [
            Block(base=_geometric_mean(base, null), head=_number(head), base_first=first)
            for base, null, head, first in zip(self.base, self.null, self.head, self.base_first, strict=True)
        ]

    def first(self, count: int) -> Pairs:
        """Return the pairs of the first blocks alone."""
        base, null, head = (side[:count] for side in (self.base, self.null, self.head))
        return Pairs(self.key, self.limit, base, null, head, self.base_first[:count])

    def verdict(self, alpha: float, *, final: bool) -> Verdict:
        """Return the verdict of the first look that decided; later blocks, for other cells, do not change it."""
        for look in (look for look in LOOKS if look < len(self.head)):
            verdict = self.first(look).verdict_now(alpha, final=False)
            if verdict.outcome.decided:
                return verdict
        return self.verdict_now(alpha, final=final)

    def verdict_now(self, alpha: float, *, final: bool) -> Verdict:
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
            noise=self.noise,
        )

    def null_trips(self, alpha: float) -> bool:
        """Whether base against base would be judged as changed."""
        return null_trips(self.null_blocks, self.metric, self.limit, alpha)

    @property
    def noise(self) -> float:
        """Standard deviation of ln(value) of one base process, from base against base; 0 if it shows none.

        If processes fall into a fast and a slow mode, four blocks often agree by chance. The noise of base against
        itself shows how far to trust them.
        """
        ratios = [block.head / block.base for block in self.null_blocks if min(block.head, block.base) > 0]
        return spread_around_zero([math.log(ratio) for ratio in ratios]) / math.sqrt(2)

    @property
    def null_blocks(self) -> list[Block]:
        """Pairs of base and base (A/A)."""
        return [
            Block(base=_number(base), head=_number(null), base_first=first)
            for base, null, first in zip(self.base, self.null, self.base_first, strict=True)
        ]


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
        """Whether more blocks must measure exact figures: those of the first block do not decide them all.

        Exact figures are decided by the first block, unless they differ between base's two processes.
        """
        return any(verdict.cell.metric.kind is Kind.EXACT for verdict in self._waiting)

    def error(self, test: str) -> str:
        """Return why head could not measure a test, in any block; empty if it could."""
        notes = [block.arms["head"].notes.get(test) for block in self._blocks]
        return next((note.error for note in notes if note and note.error), "")

    @cached_property
    def verdicts(self) -> list[Verdict]:
        """One verdict per judged cell; a change is vetoed if base against base changed as well."""
        reason = self.null_trip
        found = [*self._paired, *self._exact, *self._unpaired]
        return [veto(verdict, reason) if reason and verdict.blocks else verdict for verdict in found]

    @cached_property
    def null_trip(self) -> str:
        """Why no change in this series is valid: the A/A control changed. Empty if it did not."""
        for pairs in self.timed:
            if pairs.limit.gates and pairs.null_trips(self.alpha):
                what = f"{pairs.metric.name} of {pairs.key[0]}"
                return f"base differs from itself in {what}: noise of the machine, not the code"
        return ""

    @cached_property
    def _waiting(self) -> list[Verdict]:
        """Verdicts that more blocks may decide."""
        disturbed = [verdict for verdict in self._unpaired if verdict.outcome is Outcome.INVALID]
        found = [*self._paired, *disturbed]
        return [verdict for verdict in found if verdict.counts and not verdict.outcome.decided]

    @cached_property
    def _paired(self) -> list[Verdict]:
        return [pairs.verdict(self.alpha, final=self.final) for pairs in self.timed]

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
        found = {key: _pairs(key, self._limit(key), self._blocks) for key in self._head.values if self._is_judged(key)}
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
        cell = Cell.of(key, self._limit(key), value)
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

    def _limit(self, key: CellKey) -> Limit:
        note = self._head.notes.get(key[0])
        return note.limits[key[2]] if note and key[2] in note.limits else Limit.of(METRICS[key[2]])


def _pairs(key: CellKey, limit: Limit, blocks: Iterable[MeasuredBlock]) -> Pairs:
    """Return the cell's values from the blocks in which all three processes measured it."""
    pairs = Pairs(key, limit, [], [], [], [])
    for block in blocks:
        values = {arm: block.arms[arm].values.get(key) for arm in ("base", "null", "head")}
        base, null, head = values["base"], values["null"], values["head"]
        if base is not None and null is not None and head is not None:
            pairs.base.append(base)
            pairs.null.append(null)
            pairs.head.append(head)
            pairs.base_first.append(block.base_first)
    return pairs


def _judge_exact(pairs: Pairs) -> Verdict:
    samples = [
        Sample(run_id=f"base {number}", session_id="paired", value=value)
        for number, value in enumerate([*pairs.base, *pairs.null], start=1)
    ]
    return judge(Cell.of(pairs.key, pairs.limit, pairs.head[0], samples))


def _workload(arm: ProcessResult, name: str) -> Workload:
    if arm.baseline is None:
        raise LookupError(name)
    return arm.baseline.workloads[name]


def _geometric_mean(first: float | str, second: float | str) -> float:
    """Return the geometric mean. 0 or less has no logarithm: it is returned, and the verdict refuses it."""
    a, b = _number(first), _number(second)
    return math.sqrt(a * b) if a > 0 and b > 0 else min(a, b)


def _number(value: float | str) -> float:
    return float("nan") if isinstance(value, str) else float(value)
