"""Bisect by an exact figure: one process a candidate, and an ordinary binary search."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pytest_llmperf.ab.candidate_sides import GOOD, CandidateSides
from pytest_llmperf.ab.search import Probe
from pytest_llmperf.ab.single_process import figure_of
from pytest_llmperf.errors import LlmperfError
from pytest_llmperf.metrics import METRICS, Kind
from pytest_llmperf.storage.process_result import ProcessResult
from pytest_llmperf.verdict.judge import judge
from pytest_llmperf.verdict.model import Cell, Sample, Verdict, number

COUNTING = ("--llmperf-counted",)
"""Arguments of a process that counts work and measures no times."""


class ExactSearch:
    """Binary search for the first candidate whose figure is nearer to BAD's than to GOOD's.

    If the figure changes in several steps, that is the step across the middle. Iterating measures candidates until the
    search ends.

    Args:
        sides: of the candidates.
        verdict: of the cell that is searched: BAD's figure compared with GOOD's.
        flags: arguments of each process.
    """

    def __init__(self, sides: CandidateSides, verdict: Verdict, *, flags: Sequence[str]) -> None:
        self.verdict = verdict
        self.flags = flags
        self._sides = sides
        self._last_good, self._first_bad = GOOD, len(sides.candidates) - 1
        ends = ((GOOD, verdict.baseline), (self._first_bad, verdict.cell.value))
        self._probes = {position: Probe(position=position, value=number(value)) for position, value in ends}

    def __iter__(self) -> Iterator[Probe]:
        while (middle := self._middle) is not None:
            self._probes[middle] = probe = self._probe(middle)
            if probe.value is not None:
                self._narrow(middle, is_bad=self._is_bad(probe.value))
            yield probe

    @property
    def culprits(self) -> range:
        """The first bad candidate, with the skipped ones before it, which may be it as well."""
        return range(self._last_good + 1, self._first_bad + 1)

    @property
    def probes(self) -> list[Probe]:
        """What is known of each candidate that was asked, in order, GOOD first."""
        return [self._probes[position] for position in sorted(self._probes)]

    @property
    def belief(self) -> list[float]:
        """Equal shares of the culprits: exact figures leave no doubt but that of skipped candidates."""
        return [(one in self.culprits) / len(self.culprits) for one in range(len(self._sides.candidates))]

    @property
    def is_over(self) -> bool:
        """Whether no candidate is left to ask."""
        return self._middle is None

    def _probe(self, position: int) -> Probe:
        key = self.verdict.cell.key
        try:
            measured = self._sides.measure_once(position, self.flags, [key[0]])
            return Probe(position=position, value=figure_of(measured, key))
        except LlmperfError as error:
            return Probe(position=position, skipped=str(error))

    @property
    def _middle(self) -> int | None:
        """The middle one of the candidates that may still be asked; ``None`` if there is none."""
        left = [one for one in range(self._last_good + 1, self._first_bad) if one not in self._probes]
        return left[len(left) // 2] if left else None

    def _is_bad(self, value: float) -> bool:
        good, bad = number(self.verdict.baseline), number(self.verdict.cell.value)
        return abs(value - bad) < abs(value - good)

    def _narrow(self, position: int, *, is_bad: bool) -> None:
        if is_bad:
            self._first_bad = position
        else:
            self._last_good = position


def exact_verdicts(good: ProcessResult, bad: ProcessResult) -> list[Verdict]:
    """Compare the exact figures of BAD with GOOD's, one process each; figures that one of them lacks are left out."""
    return [
        judge(Cell.of(key, bad.limit(key), value, [Sample(run_id="GOOD", session_id="GOOD", value=before)]))
        for key, value in bad.values.items()
        if (metric := METRICS.get(key[2])) and metric.kind is Kind.EXACT
        if value is not None and (before := good.values.get(key)) is not None
    ]
