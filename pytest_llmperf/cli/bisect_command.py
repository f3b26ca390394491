"""``llmperf bisect GOOD BAD``: find the commit that made a perf test slower or bigger."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from pytest_llmperf.ab.analysis import Standing
from pytest_llmperf.ab.bisection import Bisection
from pytest_llmperf.ab.bisection_file import BisectionFile, bisection_file, candidate_result
from pytest_llmperf.ab.candidate import Commit, commits_between
from pytest_llmperf.ab.checkout import commit_of, merged_commits, repository_root
from pytest_llmperf.ab.compare import PairedComparison
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
    metric: Metric | None
    json: Path | None = None


def run_bisect(wanted: WantedBisection) -> int:
    """Search the commits from GOOD to BAD.

    Returns:
        The exit code: 0 if one commit was found, else 1.

    Raises:
        LlmperfError: GOOD is no ancestor of BAD, one of them does not build or cannot be measured, or the JSON file
            cannot be written.
    """
    here = Path.cwd()
    good, bad = wanted.comparison.base, wanted.comparison.head or "HEAD"
    commits = commits_between(good, bad, here=here)
    root = repository_root(here)
    comparison = replace(wanted.comparison, base=commit_of(root, good), arguments=_arguments(wanted))
    _say(f"{plural(len(commits), 'commit')} from {comparison.base[:12]} to {commits[-1].name}")
    effort = Effort(
        most_blocks=comparison.most_blocks,
        deadline=time.monotonic() + comparison.budget_s if comparison.budget_s else None,
    )
    bisection = Bisection(comparison, commits, metric=wanted.metric, effort=effort, here=here)
    _say("preparing GOOD and BAD")
    _say(*bisection.prepare())
    search = _counted(bisection) or _compared(bisection)
    return NOT_FOUND if search is None else _searched(bisection, search, wanted, commits, root)


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


def _searched(
    bisection: Bisection, search: Search, wanted: WantedBisection, commits: Sequence[Commit], root: Path
) -> int:
    _say(*search_lines(bisection, search))
    for probe in search:
        _say(probe_line(bisection, search, candidate_result(bisection, search, probe)))
    found = bisection_file(bisection, search, tool=f"pytest-llmperf {version('pytest-llmperf')}")
    if search.is_over and wanted.comparison.explain:
        _say("explaining it")
        found = _explained(found, bisection, search)
    say(*found_lines(found))
    _say(*(_merge_lines(commits[search.culprits[0]], root, wanted) if found.found else ()))
    if wanted.json:
        write_model(wanted.json, found, what="results")
    return FOUND if found.found else NOT_FOUND


def _explained(found: BisectionFile, bisection: Bisection, search: Search) -> BisectionFile:
    """Add the explanation; the search's result is valid without one."""
    try:
        work, times = bisection.work_changes(search), bisection.explanations(search)
    except (OSError, LlmperfError) as error:
        return found.model_copy(update={"not_explained": str(error)})
    return found.model_copy(update={"work_changes": tuple(work), "explanations": tuple(times)})


def _merge_lines(commit: Commit, root: Path, wanted: WantedBisection) -> Iterator[str]:
    if merged := merged_commits(root, commit.commit):
        words = ["llmperf", "bisect", *(one[:12] for one in merged)]
        rest = ["--", *wanted.comparison.arguments] if wanted.comparison.arguments else []
        yield f"it is a merge; to search the commits that it brought in: {shlex.join([*words, *rest])}"


def _say(*lines: str) -> None:
    say(*(f"llmperf bisect: {line}" for line in lines))
