"""Find the candidate that made a test slower or bigger: choose the cell, search, and explain what was found."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

from pytest_llmperf.ab.analysis import Standing
from pytest_llmperf.ab.blocks import BlockSeries, MeasuredBlock
from pytest_llmperf.ab.candidate import Candidate
from pytest_llmperf.ab.candidate_sides import GOOD, CandidateSides
from pytest_llmperf.ab.compare import PairedComparison, counted_changes, results_of
from pytest_llmperf.ab.exact_search import COUNTING, ExactSearch, exact_verdicts
from pytest_llmperf.ab.search import Search
from pytest_llmperf.ab.stopping import Effort, measure_until_decided
from pytest_llmperf.ab.timed_search import TimedSearch
from pytest_llmperf.metrics import Kind, Metric
from pytest_llmperf.runner.profiling import profiles_of
from pytest_llmperf.storage.process_result import ProcessResult
from pytest_llmperf.system.paths import run_folder
from pytest_llmperf.verdict.model import Outcome, Verdict
from pytest_llmperf.verdict.paired import LOOKS
from pytest_llmperf.verdict.time_change import Profiles, TimeChange, slower, time_changes
from pytest_llmperf.verdict.why import Move, Why, why_of
from pytest_llmperf.verdict.work_change import WorkChange, telling


class Bisection:
    """A search for the candidate that made one cell worse.

    Args:
        wanted: GOOD as base, BAD as head, and how to build and run both.
        candidates: in order; the last one is BAD.
        metric: to search; by default, any gating metric.
        effort: limits of measuring: blocks and time of the whole search.
        here: the user's working directory.
    """

    def __init__(
        self,
        wanted: PairedComparison,
        candidates: Sequence[Candidate],
        *,
        metric: Metric | None,
        effort: Effort,
        here: Path,
    ) -> None:
        self.sides = CandidateSides(wanted, candidates, here=here)
        self.candidates = candidates
        self.regressions: list[Verdict] = []
        """Cells that are worse on BAD, the one that is searched first."""
        self.metric = metric
        self._effort = effort
        self._here = here
        self._bad = len(candidates) - 1

    def prepare(self) -> Sequence[str]:
        """Build GOOD and BAD; return notes on dependencies that they share.

        Raises:
            LlmperfError: one of them does not build.
        """
        return self.sides.built(self._bad).notes

    @property
    def blocks_of_ends(self) -> Sequence[MeasuredBlock]:
        """The blocks of GOOD and BAD."""
        return self._ends.blocks

    @property
    def effort_of_ends(self) -> Effort:
        """Limits of measuring GOOD and BAD: a comparison has a last look."""
        return Effort(most_blocks=min(self._effort.most_blocks, LOOKS[-1]), deadline=self._effort.deadline)

    def counted(self) -> ExactSearch | None:
        """Count the work of GOOD and BAD, in one process each.

        Returns:
            A search by the cell that grew most; ``None`` if no cell that is searched for grew.

        Raises:
            LlmperfError: GOOD or BAD does not build, or cannot be counted.
        """
        if not self.counts:
            return None
        good, bad = (self.sides.measure_once(end, COUNTING) for end in (GOOD, self._bad))
        return self._exact_search(exact_verdicts(good, bad), COUNTING)

    def compare_ends(self) -> Iterator[Standing]:
        """Measure blocks of GOOD and BAD until a cell is shown to be worse, or all cells are decided.

        Yields:
            The standing after each new block, and last the one that counts.

        Raises:
            LlmperfError: one of them does not build, or a process left nothing to compare.
        """
        series = self._ends
        kept = Standing(series.blocks) if series.blocks else None
        if kept and self._wanted(kept.verdicts):
            yield kept
            return
        for standing in measure_until_decided(series, self.effort_of_ends):
            yield standing
            if self._wanted(standing.verdicts):
                return

    def search(self, ends: Standing) -> Search | None:
        """Return the search by the cell that is most clearly worse; ``None`` if none is.

        Args:
            ends: the last standing of `compare_ends`.
        """
        exact = [verdict for verdict in ends.verdicts if not verdict.blocks]
        if search := self._exact_search(exact, ()):
            return search
        self.regressions = sorted(self._wanted(ends.verdicts), key=lambda verdict: verdict.p_value or 0.0)
        if not self.regressions:
            return None
        return TimedSearch(self.sides, self.regressions[0], self._ends.blocks, effort=self._effort)

    def why(self, search: Search) -> Why | None:
        """Explain what the culprit changed, beside the candidate before it.

        Raises:
            LlmperfError: one of them cannot be counted, or a profile cannot be read.
            OSError: the folder of the traces cannot be written.
        """
        searched = search.verdict
        move = Move(searched.cell.metric.key, searched.cell.workload, searched.ratio, fails=True, against="")
        return why_of([move], self._work_changes(search), self._time_changes(search), [])

    def _work_changes(self, search: Search) -> list[WorkChange]:
        """Compare the counted work of the culprit with that of the candidate before it."""
        test = search.verdict.cell.test
        before, culprit = _around(search.culprits)
        base, head = (self._counted_one(one, test) for one in (before, culprit))
        if head.baseline is None:
            return []
        found = counted_changes(results_of(head.baseline, test), base.baseline, name=self.sides.name(before))
        return telling(found, self.regressions)

    def _time_changes(self, search: Search) -> list[TimeChange]:
        """Profile the culprit and the candidate before it, if the searched cell is the time of a request."""
        cell = search.verdict.cell
        if not slower([search.verdict]):
            return []
        before, culprit = _around(search.culprits)
        series = self._beside(before, culprit)
        folder = run_folder(self._here, "traces", f"{self.sides.name(before)}-{self.sides.name(culprit)}")
        profiles = [
            self._profiles(series, arm, position, cell.test, folder)
            for arm, position in (("base", before), ("head", culprit))
        ]
        return time_changes([search.verdict], *profiles, traces=str(folder))

    @cached_property
    def _ends(self) -> BlockSeries:
        return self.sides.built(self._bad).series

    @property
    def counts(self) -> bool:
        """Whether counting may show the change."""
        return self.metric is None or self.metric.kind is Kind.EXACT

    def _wanted(self, verdicts: Iterable[Verdict]) -> list[Verdict]:
        """Return the regressions that are searched for."""
        worse = [verdict for verdict in verdicts if verdict.outcome is Outcome.REGRESSED]
        return [one for one in worse if (one.cell.metric == self.metric if self.metric else one.fails)]

    def _exact_search(self, verdicts: Iterable[Verdict], flags: Sequence[str]) -> ExactSearch | None:
        found = [one for one in self._wanted(verdicts) if one.kind is Kind.EXACT]
        self.regressions = sorted(found, key=lambda verdict: -_growth(verdict))
        return ExactSearch(self.sides, self.regressions[0], flags=flags) if self.regressions else None

    def _counted_one(self, position: int, test: str) -> ProcessResult:
        """Count one test of a candidate; all tests of GOOD and BAD were counted before the search."""
        was_counted = self.counts and position in (GOOD, self._bad)
        return self.sides.measure_once(position, COUNTING, [] if was_counted else [test])

    def _beside(self, before: int, culprit: int) -> BlockSeries:
        """Return a series, without blocks, of a candidate and the one before it."""
        plan = self.sides.built(culprit).plan
        base, head = self.sides.side(before), self.sides.side(culprit)
        return BlockSeries(plan.folder / "explained", base, head, arguments=plan.arguments, seed=plan.seed)

    def _profiles(self, series: BlockSeries, arm: str, position: int, test: str, folder: Path) -> Profiles:
        measured, ended = series.profile(arm, [test], folder / arm)
        return profiles_of(self.sides.name(position), measured, ended)


def _around(culprits: range) -> tuple[int, int]:
    """Return the positions of the last good candidate and of the first one that is known to be bad."""
    return culprits.start - 1, culprits[-1]


def _growth(verdict: Verdict) -> float:
    """Return the relative change of an exact cell; infinite if it was 0."""
    return float("inf") if verdict.ratio is None else abs(verdict.ratio - 1)
