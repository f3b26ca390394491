"""Result of a bisection: what ``llmperf bisect --json`` writes, and what its output is made from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pytest_llmperf.ab.bisection import Bisection
from pytest_llmperf.ab.search import Probe, Search
from pytest_llmperf.ab.timed_search import TimedSearch, ratio_of
from pytest_llmperf.storage.baseline_file import Written
from pytest_llmperf.verdict.model import Verdict, number
from pytest_llmperf.verdict.why import Why


class CandidateResult(Written):
    """What the search learned of one candidate, beside GOOD."""

    name: str
    title: str
    """Of a commit: author, day and subject. Of a release: the one before."""
    value: float | None = None
    """Exact figure, in the metric's unit."""
    ratio: float | None = None
    """Of a timed figure to GOOD's."""
    interval: tuple[float, float] | None = None
    """Of the ratio, at 95 %; ``None`` with a single block."""
    blocks: int = 0
    belief: float
    """Probability that it is the first bad one."""
    skipped: str = ""
    """Why it could not be compared."""


class CellName(Written):
    """A cell: test, workload hash and metric key."""

    test: str
    workload: str
    metric: str


class BisectionFile(Written):
    """Result of ``llmperf bisect``."""

    tool: str
    good: str
    bad: str
    kind: Literal["exact", "timed"]
    kind_of_candidate: str = "commit"
    """``commit``, or ``release`` of a package."""
    searched: CellName
    others: tuple[CellName, ...]
    """Cells that are worse on BAD as well, and were not searched: other commits may have changed them."""
    found: bool
    """Whether one candidate was found."""
    ended: bool
    """Whether the search is over; ``False`` if the budget ended it."""
    culprits: tuple[CandidateResult, ...]
    """The first bad candidate; several if the budget ended, or if skipped ones cannot be told from it."""
    belief: float
    """Probability that the first bad candidate is among the culprits."""
    last_good: str
    good_value: float | None = None
    """Exact figure of GOOD, in the metric's unit."""
    bad_value: float | None = None
    before: float | None = None
    """Exact figure of the last good candidate, in the metric's unit."""
    after: float | None = None
    """The same of the first one that is known to be bad."""
    ratio: float | None = None
    """Timed figure from the culprit on, relative to GOOD's."""
    interval: tuple[float, float] | None = None
    """Of the ratio, at 95 %."""
    blocks: int = 0
    candidates: int
    """Number of candidates from GOOD to BAD."""
    asked: tuple[CandidateResult, ...]
    """The candidates that were measured or skipped, in order."""
    why: Why | None = None
    """What the culprit changed."""
    not_explained: str = ""
    """Why there is no explanation."""


def bisection_file(bisection: Bisection, search: Search, *, tool: str) -> BisectionFile:
    """Return the result of a search, without explanations."""
    culprits, sides = search.culprits, bisection.sides
    timed = search if isinstance(search, TimedSearch) else None
    known = {probe.position: probe for probe in search.probes}
    step = timed.step if timed and timed.is_over else None
    ends = [known[one].value if one in known else None for one in (culprits.start - 1, culprits[-1])]
    return BisectionFile(
        tool=tool,
        good=sides.wanted.base_name,
        kind_of_candidate=bisection.candidates[-1].kind,
        bad=bisection.candidates[-1].name,
        kind="timed" if timed else "exact",
        searched=_cell_name(search.verdict),
        others=tuple(_cell_name(verdict) for verdict in bisection.regressions[1:]),
        ended=search.is_over,
        found=search.is_over and len(culprits) == 1,
        culprits=tuple(candidate_result(bisection, search, known.get(one) or Probe(position=one)) for one in culprits),
        belief=sum(search.belief[culprits.start : culprits.stop]),
        last_good=sides.name(culprits.start - 1),
        good_value=None if timed else number(search.verdict.baseline),
        bad_value=None if timed else number(search.verdict.cell.value),
        before=ends[0],
        after=ends[1],
        ratio=step[0] if step else None,
        interval=(step[1].low, step[1].high) if step else None,
        blocks=timed.blocks if timed else 0,
        candidates=len(bisection.candidates),
        asked=tuple(candidate_result(bisection, search, probe) for probe in search.probes if probe.position >= 0),
    )


def candidate_result(bisection: Bisection, search: Search, probe: Probe) -> CandidateResult:
    """Return what a search knows of one candidate."""
    candidate = bisection.candidates[probe.position]
    ratio, interval = _ratio(probe.differences, search.verdict)
    return CandidateResult(
        name=candidate.name,
        title=candidate.title,
        value=probe.value,
        ratio=ratio,
        interval=interval,
        blocks=probe.blocks,
        belief=search.belief[probe.position],
        skipped=probe.skipped,
    )


def _ratio(differences: Sequence[float], verdict: Verdict) -> tuple[float | None, tuple[float, float] | None]:
    if not differences:
        return None, None
    ratio, interval = ratio_of(differences, verdict)
    return ratio, (interval.low, interval.high) if len(differences) > 1 else None


def _cell_name(verdict: Verdict) -> CellName:
    test, workload, metric = verdict.cell.key
    return CellName(test=test, workload=workload, metric=metric)
