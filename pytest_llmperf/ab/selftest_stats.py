"""Statistics of a selftest: false alarms, detection rates, spreads and costs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from statistics import fmean, variance
from typing import Literal

from pytest_llmperf.ab.analysis import Pairs, Standing
from pytest_llmperf.ab.blocks import MeasuredBlock
from pytest_llmperf.metrics import Kind, Limit
from pytest_llmperf.stats.binomial import rate_interval, upper_bound
from pytest_llmperf.storage.baseline_file import Written
from pytest_llmperf.verdict.model import Outcome, Verdict
from pytest_llmperf.verdict.paired import detectable_change

SEEN = 0.9
"""Share of decisions that must find a slowdown for it to count as seen."""


@dataclass(frozen=True, kw_only=True)
class CellBlocks:
    """One cell's blocks of one A/A pair: ln(head / base), positive if worse, and the cell's limits."""

    test: str
    metric: str
    limit: Limit
    alpha: float
    differences: Sequence[float]

    @classmethod
    def of(cls, pairs: Pairs, alpha: float) -> CellBlocks:
        """Create from pairs, without blocks whose values have no logarithm."""
        name = pairs.metric.name
        return cls(test=pairs.key[0], metric=name, limit=pairs.limit, alpha=alpha, differences=pairs.changes)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One comparison of the worktree with itself, slowed down by ``size`` (a share; 0: an A/A pair)."""

    size: float
    cells: Sequence[Verdict]
    """Timed cells that gate: one decision each."""
    exact_alarms: Sequence[Verdict]
    """Exact cells that gate and regressed."""
    spreads: Sequence[CellBlocks]
    null_trip: str
    blocks: int
    seconds: float
    cut: bool
    """Whether the budget ended it before every cell was decided: it then counts for the cost only."""

    @property
    def found(self) -> int:
        """Decisions that said regressed."""
        return sum(verdict.outcome is Outcome.REGRESSED for verdict in self.cells)

    @classmethod
    def of(cls, size: float, standing: Standing, blocks: Sequence[MeasuredBlock], *, cut: bool) -> Trial:
        """Create from a finished series of blocks."""
        judged = [verdict for verdict in standing.verdicts if verdict.counts]
        return cls(
            size=size,
            cells=[verdict for verdict in judged if _is_timed(verdict) and verdict.blocks],
            exact_alarms=[v for v in judged if not _is_timed(v) and v.outcome is Outcome.REGRESSED],
            spreads=[CellBlocks.of(pairs, standing.alpha) for pairs in standing.timed if pairs.limit.gates],
            null_trip=standing.null_trip,
            blocks=len(blocks),
            seconds=math.fsum(block.seconds for block in blocks),
            cut=cut,
        )


def _is_timed(verdict: Verdict) -> bool:
    """Whether the metric is defined as timed: an exact metric that varies may have been judged as one."""
    return verdict.cell.metric.kind is Kind.TIMED


class Tally(Written):
    """All decisions on one size of slowdown, a share; 0 for A/A pairs, where every finding is a false alarm."""

    size: float
    comparisons: int
    decisions: int
    decided: int
    found: int
    """Decisions that said regressed."""
    rate_low: float
    rate_high: float
    """Two-sided 95 % interval of found / decisions, assuming independent decisions."""
    upper_bound: float
    """One-sided 95 % upper bound of the same rate."""
    measured: float | None
    """Measured slowdown: geometric mean over decisions, as a share."""
    blocks: float | None
    """Average per comparison."""
    minutes: float
    """Total of all comparisons, including those cut off."""

    @property
    def is_seen(self) -> bool:
        """Whether the slowdown was found nearly each time (`SEEN`)."""
        return self.decisions > 0 and self.found >= SEEN * self.decisions


class CellSpread(Written):
    """Spread of one cell's blocks, base against itself: the standard deviation of ln(head / base)."""

    test: str
    metric: str
    blocks: int
    sd: float
    detectable: float
    """Slowdown, as a share, that 48 blocks find nine times in ten."""


class SelftestFile(Written):
    """Results of a selftest."""

    schema_version: Literal[1] = 1
    tool: str
    device_key: str
    kind: str
    """Kind of injection."""
    null: Tally
    exact_alarms: int
    """Exact cells that regressed in A/A pairs."""
    sizes: list[Tally]
    smallest_seen: float | None
    """The smallest size that was found nearly each time, like every larger one."""
    spreads: list[CellSpread]
    cut: int
    """Comparisons that the budget ended."""

    @property
    def shortcomings(self) -> list[str]:
        """Why the gate has not proved on this machine that it works; empty if it has."""
        largest = self.sizes[-1]
        size = f"+{100 * largest.size:g} %"
        reasons = {
            "a false alarm": self.null.found + self.exact_alarms > 0,
            "no A/A cell was decided: allow more --budget or --blocks": not self.null.decided,
            f"{size} was not completed: allow more --budget": not largest.decisions,
            f"{size} was missed": largest.found < largest.decisions,
        }
        return [reason for reason, holds in reasons.items() if holds]


def add_up(trials: Sequence[Trial], sizes: Sequence[float], *, tool: str, device_key: str, kind: str) -> SelftestFile:
    """Aggregate trials.

    Args:
        trials: in any order.
        sizes: the requested ones, the largest last.
        tool: name and version.
        device_key: of the machine.
        kind: of injection.
    """
    null, *tallies = (_tally(size, [trial for trial in trials if trial.size == size]) for size in (0.0, *sizes))
    pairs = [trial for trial in trials if not trial.size]
    return SelftestFile(
        tool=tool,
        device_key=device_key,
        kind=kind,
        null=null,
        exact_alarms=sum(len(trial.exact_alarms) for trial in pairs),
        sizes=tallies,
        smallest_seen=_smallest_seen(tallies),
        spreads=_spreads(pairs),
        cut=sum(trial.cut for trial in trials),
    )


def slowdown(verdicts: Iterable[Verdict]) -> float | None:
    """Return the mean slowdown of verdicts, as a share (geometric mean); ``None`` if no verdict has a ratio."""
    logs = [verdict.cell.metric.better.sign * math.log(verdict.ratio) for verdict in verdicts if verdict.ratio]
    return math.expm1(fmean(logs)) if logs else None


def _tally(size: float, trials: Sequence[Trial]) -> Tally:
    whole = [trial for trial in trials if not trial.cut]
    cells = [verdict for trial in whole for verdict in trial.cells]
    found = sum(trial.found for trial in whole)
    low, high = rate_interval(found, len(cells))
    return Tally(
        size=size,
        comparisons=len(whole),
        decisions=len(cells),
        decided=sum(verdict.outcome.decided for verdict in cells),
        found=found,
        rate_low=low,
        rate_high=high,
        upper_bound=upper_bound(found, len(cells)),
        measured=slowdown(cells),
        blocks=fmean([trial.blocks for trial in whole]) if whole else None,
        minutes=math.fsum(trial.seconds for trial in trials) / 60,
    )


def _smallest_seen(tallies: Sequence[Tally]) -> float | None:
    seen = [tally.size for tally in takewhile(lambda tally: tally.is_seen, reversed(tallies))]
    return seen[-1] if seen else None


def _spreads(pairs: Sequence[Trial]) -> list[CellSpread]:
    """Return each cell's spread, pooled within comparisons: differences between comparisons are in no block."""
    by_cell: dict[tuple[str, str], list[CellBlocks]] = defaultdict(list)
    for trial in pairs:
        for cell in trial.spreads:
            by_cell[cell.test, cell.metric].append(cell)
    return [spread for cells in by_cell.values() if (spread := _spread(cells))]


def _spread(cells: Sequence[CellBlocks]) -> CellSpread | None:
    several = [cell.differences for cell in cells if len(cell.differences) > 1]
    if not several:
        return None
    degrees = sum(len(differences) - 1 for differences in several)
    sd = math.sqrt(math.fsum((len(d) - 1) * variance(d) for d in several) / degrees)
    first = cells[0]
    return CellSpread(
        test=first.test,
        metric=first.metric,
        blocks=sum(map(len, several)),
        sd=sd,
        detectable=detectable_change(sd, first.limit, alpha=first.alpha),
    )
