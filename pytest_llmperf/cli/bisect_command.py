"""``llmperf bisect GOOD BAD``: find the commit that made a perf test slower or bigger."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from pytest_llmperf.ab.analysis import Standing
from pytest_llmperf.ab.bisection import Bisection
from pytest_llmperf.ab.bisection_file import BisectionFile, bisection_file, candidate_result
from pytest_llmperf.ab.candidate import Candidate, CommitCandidate, commit_candidates
from pytest_llmperf.ab.candidate_sides import GOOD
from pytest_llmperf.ab.checkout import commit_of, merged_commits, repository_root
from pytest_llmperf.ab.compare import PairedComparison
from pytest_llmperf.ab.release import PackageRange, releases_beside_good
from pytest_llmperf.ab.search import Search
from pytest_llmperf.ab.stopping import Effort
from pytest_llmperf.cli.ab_output import progress_lines
from pytest_llmperf.cli.bisect_output import found_lines, nothing_line, probe_line, search_lines
from pytest_llmperf.cli.say import say
from pytest_llmperf.errors import LlmperfError
from pytest_llmperf.metrics import Metric
from pytest_llmperf.storage.baseline_file import write_model
from pytest_llmperf.text import plural

FOUND, NOT_FOUND = 0, 1


@dataclass(frozen=True, kw_only=True)
class WantedBisection:
    """Settings of a bisection."""

    comparison: PairedComparison
    """GOOD as base, BAD as head; its budget and blocks are those of the whole search."""
    releases: PackageRange | None = None
    """Releases to search; base is then the commit to run."""
    metric: Metric | None
    json: Path | None = None


def run_bisect(wanted: WantedBisection) -> int:
    """Search the commits or releases from GOOD to BAD.

    Returns:
        The exit code: 0 if one was found, else 1.

    Raises:
        LlmperfError: pip does not list a release, GOOD is no ancestor of BAD, one of them does not build or cannot be
            measured, or the JSON file cannot be written.
    """
    here = Path.cwd()
    comparison, candidates = _candidates(wanted, here)
    effort = Effort.from_now(comparison.most_blocks, comparison.budget_s)
    bisection = Bisection(comparison, candidates, metric=wanted.metric, effort=effort, here=here)
    last = candidates[-1]
    _say(f"{plural(len(candidates), last.kind)} from {bisection.sides.name(GOOD)} to {last.name}")
    _say("preparing GOOD and BAD")
    _say(*bisection.prepare())
    search = _counted(bisection) or _compared(bisection)
    return NOT_FOUND if search is None else _searched(bisection, search, wanted, repository_root(here))


def _candidates(wanted: WantedBisection, here: Path) -> tuple[PairedComparison, Sequence[Candidate]]:
    """Return the comparison, with GOOD as base, and the candidates after it."""
    comparison = replace(wanted.comparison, arguments=_arguments(wanted))
    if wanted.releases:
        return releases_beside_good(comparison, wanted.releases, here=here)
    commits = commit_candidates(comparison.base, comparison.head or "HEAD", here=here)
    return replace(comparison, base=commit_of(repository_root(here), comparison.base)), commits


def _arguments(wanted: WantedBisection) -> list[str]:
    gate = [f"--llmperf-gate={wanted.metric.name}"] if wanted.metric else []
    return [*wanted.comparison.arguments, *gate]


def _counted(bisection: Bisection) -> Search | None:
    if not bisection.counts:
        return None
    _say("counting the work of GOOD and BAD")
    if (search := bisection.counted()) is None:
        _say("no counted figure that gates is worse on BAD")
    return search


def _compared(bisection: Bisection) -> Search | None:
    """Compare GOOD and BAD by blocks; say so if nothing got worse."""
    _say("comparing GOOD with BAD by blocks")
    standings, effort = list[Standing](), bisection.effort_of_ends
    for standing in bisection.compare_ends():
        standings.append(standing)
        if not standing.final:
            say(*progress_lines(standing, bisection.blocks_of_ends, most=effort.most_blocks, left_s=effort.left_s))
    search = bisection.search(standings[-1])
    if search is None:
        _say(nothing_line(standings[-1], bisection.metric))
    return search


def _searched(bisection: Bisection, search: Search, wanted: WantedBisection, root: Path) -> int:
    _say(*search_lines(bisection, search))
    for probe in search:
        _say(probe_line(bisection, search, candidate_result(bisection, search, probe)))
    found = bisection_file(bisection, search, tool=f"pytest-llmperf {version('pytest-llmperf')}")
    if search.is_over and wanted.comparison.explain:
        _say("explaining it")
        found = _explained(found, bisection, search)
    say(*found_lines(found))
    if found.found:
        _say(*_merge_lines(bisection.candidates[search.culprits[0]], root, wanted))
    if wanted.json:
        write_model(wanted.json, found, what="results")
    return FOUND if found.found else NOT_FOUND


def _explained(found: BisectionFile, bisection: Bisection, search: Search) -> BisectionFile:
    """Add the explanation; the search's result is valid without one."""
    try:
        why = bisection.why(search)
    except (OSError, LlmperfError) as error:
        return found.model_copy(update={"not_explained": str(error)})
    return found.model_copy(update={"why": why})


def _merge_lines(culprit: Candidate, root: Path, wanted: WantedBisection) -> Iterator[str]:
    if isinstance(culprit, CommitCandidate) and (merged := merged_commits(root, culprit.commit)):
        words = ["llmperf", "bisect", *(one[:12] for one in merged)]
        rest = ["--", *wanted.comparison.arguments] if wanted.comparison.arguments else []
        yield f"it is a merge; to search the commits that it brought in: {shlex.join([*words, *rest])}"


def _say(*lines: str) -> None:
    say(*(f"llmperf bisect: {line}" for line in lines))
