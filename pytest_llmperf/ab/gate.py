"""Parts of ``llmperf gate``: the commit to compare with, the screen, and the verdicts of both stages combined."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pytest_llmperf.ab.checkout import commit_of, first_parent, merge_base, working_tree_commit
from pytest_llmperf.errors import LlmperfError, UsageError
from pytest_llmperf.system.git import remote_of
from pytest_llmperf.system.paths import scratch_folder
from pytest_llmperf.system.pytest_process import run_perf_tests, without_outputs
from pytest_llmperf.text import plural, printable
from pytest_llmperf.verdict.model import Outcome
from pytest_llmperf.verdict.verdict_file import (
    CellVerdict,
    TestVerdicts,
    VerdictFile,
    decided,
    read_verdicts,
)
from pytest_llmperf.verdict.why import Move, Why, why_of
from pytest_llmperf.verdict.work_change import WorkChange

BRANCH_VARIABLES = (
    "GITHUB_BASE_REF",
    "CI_MERGE_REQUEST_TARGET_BRANCH_NAME",  # GitLab
    "CHANGE_TARGET",  # Jenkins
    "SYSTEM_PULLREQUEST_TARGETBRANCH",  # Azure Pipelines
    "BUILDKITE_PULL_REQUEST_BASE_BRANCH",
    "BITBUCKET_PR_DESTINATION_BRANCH",
)
"""Variables in which CI systems name the target branch of a pull request."""

COMMON_BRANCHES = ("origin/HEAD", "origin/main", "origin/master", "main", "master")

_OPEN = frozenset({Outcome.INCONCLUSIVE, Outcome.NEW, Outcome.NOT_COMPARABLE, Outcome.INVALID})
_NOT_COMPARED = (Outcome.NEW, Outcome.NOT_COMPARABLE)
_SCREENED = (0, 1)


@dataclass(frozen=True)
class GateBase:
    """The commit to compare with; on the target branch itself it is HEAD's first parent."""

    commit: str
    is_first_parent: bool = False


def gate_base(root: Path, branch: str) -> GateBase:
    """Return the merge base with the target branch, or on the target branch itself HEAD's first parent.

    Raises:
        LlmperfError: git knows no such branch, they share no history, or HEAD has no parent.
    """
    base, head = merge_base(root, branch), commit_of(root, "HEAD")
    if base != head or working_tree_commit(root) != head:
        return GateBase(base)
    return GateBase(first_parent(root, head), is_first_parent=True)


def target_branch(root: Path, environ: Mapping[str, str]) -> str:
    """Return the target branch of a pull request: the one that CI names, else the first of the usual ones.

    Raises:
        UsageError: git does not have the branch that CI names, or none of the usual ones.
    """
    if told := next((name for name in BRANCH_VARIABLES if environ.get(name)), ""):
        return _told_branch(root, told, environ[told].removeprefix("refs/heads/"))
    for branch in COMMON_BRANCHES:
        with suppress(LlmperfError):
            merge_base(root, branch)
            return branch
    tried = ", ".join(COMMON_BRANCHES)
    raise UsageError(f"no target branch: none of {tried} shares history with HEAD; name one: llmperf gate BRANCH")


def _told_branch(root: Path, variable: str, name: str) -> str:
    """Return the branch that CI names, and no other one: another merge base would answer another question."""
    remote = remote_of(root)
    branch = f"{remote}/{name}"
    try:
        commit_of(root, f"refs/remotes/{branch}")
    except LlmperfError as error:
        words = printable(f"{variable}={name}: git does not have {branch}")
        fetch = printable(f"git fetch {remote} +refs/heads/{name}:refs/remotes/{branch}")
        raise UsageError(f"{words}: run {fetch}, or name the branch: llmperf gate BRANCH") from error
    return branch


def screen_tests(arguments: Sequence[str], base: str, *, here: Path) -> tuple[int, VerdictFile | None]:
    """Run the perf tests once and compare with the baseline of ``base``.

    Args:
        arguments: pytest's.
        base: commit of the baseline.
        here: the user's working directory.

    Returns:
        pytest's exit code, and the verdicts; ``None`` if the tests could not be run.
    """
    path = scratch_folder(here, "gate") / "screen.json"
    path.unlink(missing_ok=True)
    screening = [
        *without_outputs(arguments),
        "--llmperf-screen",
        f"--llmperf-baseline-ref={base}",
        f"--llmperf-verdicts={path}",
        "--llmperf-fail-on=",  # applied to the combined verdicts, at the end
    ]
    ended = run_perf_tests(screening, folder=here)
    if ended.exit_code not in _SCREENED or not path.exists():
        return ended.exit_code or 1, None
    return ended.exit_code, read_verdicts(path)


def open_tests(screened: VerdictFile) -> list[str]:
    """Return the tests with a gating cell that the screen could not decide."""
    return [test.test for test in screened.tests if any(map(_is_open, test.cells))]


def combined(screened: VerdictFile, compared: VerdictFile | None, *, fail_on: frozenset[Outcome]) -> VerdictFile:
    """Return the screen's verdicts; the comparison with the merge base replaces those of open cells.

    Args:
        screened: verdicts of the screen, made without ``fail_on``.
        compared: verdicts against the merge base; ``None`` if the screen left nothing open.
        fail_on: outcomes that fail as well.
    """
    second = {test.test: test for test in compared.tests} if compared else {}
    tests = [_replaced(test, second.get(test.test), fail_on) for test in screened.tests]
    outcomes = Counter(cell.outcome for test in tests for cell in test.cells if cell.counts)
    outcomes[Outcome.ERROR] += sum(bool(test.error) for test in tests)
    breach = screened.breach or _breach(screened.missing, fail_on)
    failed = any(test.failed for test in tests) or bool(breach)
    return screened.model_copy(
        update={
            "tests": tests,
            "outcomes": {outcome: outcomes[outcome] for outcome in Outcome if outcomes[outcome]},
            "decided": decided(outcomes),
            "total": sum(outcomes.values()),
            "failed": failed,
            "breach": breach,
            "exit_code": int(failed),
            "sides": compared.sides if compared else {},
        }
    )


def _breach(missing: Sequence[str], fail_on: frozenset[Outcome]) -> str:
    is_asked = missing and Outcome.MISSING in fail_on
    return f"no result of {plural(len(missing), 'test')} of the baseline" if is_asked else ""


def _is_open(cell: CellVerdict) -> bool:
    return cell.counts and _may_be_answered(cell)


def _may_be_answered(cell: CellVerdict) -> bool:
    """Whether the merge base may decide a cell that the baseline left open; it knows nothing of an anchor."""
    return cell.outcome in _OPEN and not cell.against


def _replaced(test: TestVerdicts, second: TestVerdicts | None, fail_on: frozenset[Outcome]) -> TestVerdicts:
    found = {(cell.workload, cell.metric): cell for cell in second.cells} if second else {}
    cells = [_chosen(cell, found.get((cell.workload, cell.metric)), fail_on) for cell in test.cells]
    error = test.error or (second.error if second else "")
    failed = bool(error) or any(cell.fails for cell in cells)
    why = _combined_why(cells, [one.why for one in (second, test) if one and one.why])
    return test.model_copy(
        update={
            "cells": cells,
            "error": error,
            "failed": failed,
            "reproduce": (second or test).reproduce,
            "why": why,
        }
    )


def _combined_why(cells: Sequence[CellVerdict], found: Sequence[Why]) -> Why | None:
    """Explain the combined verdicts by what both stages found, that of the merge base first."""
    moves = [
        Move(cell.metric, cell.workload, cell.ratio, fails=cell.outcome is Outcome.REGRESSED, against=cell.against)
        for cell in cells
        if cell.gates and cell.outcome in (Outcome.REGRESSED, Outcome.IMPROVED)
    ]
    times = found[0].times if found else ()
    return why_of(moves, _combined_work(found), times, [why.code for why in found if why.code])


def _combined_work(found: Sequence[Why]) -> tuple[WorkChange, ...]:
    """Return one change for each workload and phase: the merge base's, unless only the baseline's shows a change."""
    chosen: dict[tuple[str, str, str], WorkChange] = {}
    for change in (change for why in found for change in why.work):
        key = (change.workload, change.phase, change.against)
        if key not in chosen or (change.differs and not chosen[key].differs):
            chosen[key] = change
    return (*chosen.values(),)


def _chosen(first: CellVerdict, second: CellVerdict | None, fail_on: frozenset[Outcome]) -> CellVerdict:
    """Return the comparison's verdict, decided or not, if the baseline left the cell open; else the screen's."""
    cell = second if second and second.outcome not in _NOT_COMPARED and _may_be_answered(first) else first
    improved_long_ago = cell.against and cell.outcome is Outcome.IMPROVED
    asked = cell.counts and cell.outcome in fail_on and not improved_long_ago
    return cell.model_copy(update={"fails": cell.fails or asked})
