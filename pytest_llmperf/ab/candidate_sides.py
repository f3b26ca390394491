"""Build the candidates of a bisection beside GOOD, each in a folder that survives an interruption."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pytest_llmperf.ab.blocks import BlockSeries
from pytest_llmperf.ab.candidate import Candidate
from pytest_llmperf.ab.compare import (
    ComparisonPlan,
    PairedComparison,
    build_sides,
    digest_of,
    plan_comparison,
    series_of_blocks,
)
from pytest_llmperf.ab.side import Side
from pytest_llmperf.ab.single_process import measure_once
from pytest_llmperf.storage.process_result import ProcessResult
from pytest_llmperf.system.paths import user_folder
from pytest_llmperf.system.pytest_process import only_tests

GOOD = -1
"""Position of GOOD, before the first candidate."""


@dataclass(frozen=True)
class BuiltCandidate:
    """A candidate and GOOD, built to be compared: each has the dependencies in which the other one differs."""

    plan: ComparisonPlan
    good: Side
    side: Side
    notes: Sequence[str]

    @property
    def series(self) -> BlockSeries:
        """The blocks of GOOD beside the candidate."""
        return series_of_blocks(self.plan, self.good, self.side)


class CandidateSides:
    """The sides of a bisection. A candidate is built when it is first asked for.

    Args:
        wanted: GOOD as base, BAD as head, and how to build and run both.
        candidates: in order; the last one is BAD.
        here: the user's working directory.
    """

    def __init__(self, wanted: PairedComparison, candidates: Sequence[Candidate], *, here: Path) -> None:
        self.wanted = wanted
        self.candidates = candidates
        self._here = here
        self._bad = len(candidates) - 1
        self._ends = plan_comparison(candidates[-1].beside_good(wanted), here=here)
        self.folder = user_folder("bisect", self._ends.folder.name)
        if wanted.restart:
            shutil.rmtree(self.folder, ignore_errors=True)
        self._built: dict[int, BuiltCandidate] = {}

    def name(self, position: int) -> str:
        """Return the short name of a candidate, or of GOOD."""
        if position != GOOD:
            return self.candidates[position].name
        return self.wanted.base_name if self.wanted.base_recipe.requirements else self.wanted.base[:12]

    def built(self, position: int) -> BuiltCandidate:
        """Return a candidate beside GOOD.

        The blocks of GOOD and BAD are those of ``llmperf ab GOOD BAD``. The other candidates have folders of their own,
        since their blocks measure only the test that is searched.

        Raises:
            LlmperfError: it does not build.
        """
        if position not in self._built:
            plan = self._ends if position == self._bad else self._plan(position)
            (good, side), notes = build_sides(plan)
            self._built[position] = BuiltCandidate(plan, good, side, notes)
        return self._built[position]

    def side(self, position: int) -> Side:
        """Return the side of a candidate, or of GOOD.

        Raises:
            LlmperfError: it does not build.
        """
        return self.built(self._bad).good if position == GOOD else self.built(position).side

    def measure_once(self, position: int, flags: Sequence[str], tests: Sequence[str] = ()) -> ProcessResult:
        """Measure a candidate, or GOOD, in one process.

        Args:
            position: of the candidate.
            flags: further arguments of pytest.
            tests: keys of the tests to measure; if empty, all that the arguments select.

        Raises:
            LlmperfError: it does not build, or its process did not end by itself.
        """
        side = self.side(position)
        plan = self.built(self._bad if position == GOOD else position).plan
        words = [*flags, *only_tests(tests)]
        folder = plan.folder / "single" / f"{side.name}-{digest_of(words)}"
        return measure_once(side, folder, [*plan.arguments, *words])

    def _plan(self, position: int) -> ComparisonPlan:
        plan = plan_comparison(self.candidates[position].beside_good(self.wanted), here=self._here)
        return replace(plan, folder=self.folder / plan.folder.name)
