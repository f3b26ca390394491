"""Bisect by a timed figure: a noisy binary search, whose comparisons are blocks of a candidate beside GOOD."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pytest_llmperf.ab.analysis import Standing
from pytest_llmperf.ab.blocks import BlockSeries, MeasuredBlock
from pytest_llmperf.ab.candidate_sides import CandidateSides
from pytest_llmperf.ab.search import Probe
from pytest_llmperf.ab.stopping import Effort
from pytest_llmperf.errors import LlmperfError, UsageError
from pytest_llmperf.metrics import Kind
from pytest_llmperf.stats.interval import Interval
from pytest_llmperf.stats.noisy_bisection import NoisyBisection
from pytest_llmperf.stats.student_t import SD_FLOOR, bounded_exp, ratio_interval
from pytest_llmperf.stats.trimmed_mean import Location
from pytest_llmperf.verdict.model import CellKey, Outcome, Verdict

MOST_WITHOUT_A_FIGURE = 3
"""Number of blocks without a valid figure after which a candidate is skipped."""


class TimedSearch:
    """Noisy binary search for the first bad candidate. Iterating measures one block after the other.

    Args:
        sides: of the candidates.
        verdict: of the cell that is searched: BAD compared with GOOD.
        blocks: of GOOD and BAD.
        effort: limits of measuring; the blocks of all candidates count, also those of GOOD and BAD.
    """

    def __init__(
        self, sides: CandidateSides, verdict: Verdict, blocks: Sequence[MeasuredBlock], *, effort: Effort
    ) -> None:
        self.verdict = verdict
        self._sides = sides
        self._effort = effort
        self._series: dict[int, BlockSeries] = {}
        self._bad = len(sides.candidates) - 1
        self._bisection = NoisyBisection(len(sides.candidates))
        self._probes: dict[int, Probe] = {}
        self._block_s = blocks[-1].seconds
        self._take(Probe(position=self._bad, differences=differences_of(blocks, self._key), blocks=len(blocks)))

    def __iter__(self) -> Iterator[Probe]:
        while not self.is_over and not self._is_spent and (position := self._bisection.next) is not None:
            probe = self._probe(position)
            self._take(probe)
            yield probe

    @property
    def probes(self) -> list[Probe]:
        """What is known of each candidate that was asked, in order."""
        return [self._probes[position] for position in sorted(self._probes)]

    @property
    def culprits(self) -> range:
        """The first bad candidate, or the neighbours that together have enough belief."""
        return self._bisection.found or self._bisection.likely

    @property
    def belief(self) -> list[float]:
        """Probability of each candidate to be the first bad one."""
        return self._bisection.belief

    @property
    def is_over(self) -> bool:
        """Whether there is enough belief in one candidate, or in one and the skipped ones before it."""
        return self._bisection.found is not None

    @property
    def blocks(self) -> int:
        """Number of blocks of all candidates."""
        return sum(probe.blocks for probe in self._probes.values())

    @property
    def step(self) -> tuple[float, Interval]:
        """Ratio of the last culprit and its successors to GOOD, in the metric's own direction, with its interval."""
        after = range(self.culprits[-1], self._bad + 1)
        differences = [one for probe in self.probes if probe.position in after for one in probe.differences]
        return ratio_of(differences, self.verdict)

    @property
    def _key(self) -> CellKey:
        return self.verdict.cell.key

    @property
    def _is_spent(self) -> bool:
        left_s = self._effort.left_s
        return self.blocks >= self._effort.most_blocks or (left_s is not None and left_s < self._block_s)

    def _probe(self, position: int) -> Probe:
        """Measure one more block of a candidate; if an earlier run kept blocks, return those instead."""
        try:
            series = self._open(position)
            if position in self._probes or not series.blocks:
                times_only = self.verdict.cell.metric.kind is Kind.TIMED
                self._block_s = series.measure([self._key[0]], times_only=times_only).seconds
            found = differences_of(series.blocks, self._key)
            if not found and len(series.blocks) >= MOST_WITHOUT_A_FIGURE:
                raise UsageError(f"none of {len(series.blocks)} blocks is valid: the machine is disturbed")
        except LlmperfError as error:
            return Probe(position=position, skipped=str(error))
        return Probe(position=position, differences=found, blocks=len(series.blocks))

    def _open(self, position: int) -> BlockSeries:
        if position not in self._series:
            self._series[position] = self._sides.built(position).series
        return self._series[position]

    def _take(self, probe: Probe) -> None:
        position = probe.position
        if probe.skipped:
            self._bisection.skip(position)
        else:
            known = len(self._probes[position].differences) if position in self._probes else 0
            self._bisection.add(position, probe.differences[known:])
        self._probes[position] = probe


def differences_of(blocks: Sequence[MeasuredBlock], key: CellKey) -> list[float]:
    """Return ln(value) of head less that of base for each valid block of a cell; above 0 is worse.

    Raises:
        UsageError: head does not measure the cell; the message says why.
    """
    standing = Standing(blocks)
    if error := standing.error(key[0]):
        raise UsageError(f"{key[0]}: {error}")
    if pairs := next((one for one in standing.timed if one.key == key), None):
        return pairs.changes
    verdict = next((one for one in standing.verdicts if one.cell.key == key), None)
    if verdict is None:
        raise UsageError(f"it does not measure {key[2]} of {key[0]} with the same workload")
    if verdict.outcome is not Outcome.INVALID:
        raise UsageError(f"{key[0]}: {verdict.reason}")
    return []


def ratio_of(differences: Sequence[float], verdict: Verdict) -> tuple[float, Interval]:
    """Return the ratio to GOOD, in the metric's own direction, and its 95 % interval."""
    found = Location.of(differences, spread=SD_FLOOR)
    log_ratio = verdict.cell.metric.better.sign * found.mean
    return bounded_exp(log_ratio), ratio_interval(log_ratio, found.se, max(found.df, 1))
