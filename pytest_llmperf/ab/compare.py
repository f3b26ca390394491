"""``llmperf ab BASE [HEAD]``: build both revisions, measure blocks until every test is decided, and report."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pytest_llmperf.ab.analysis import Standing
from pytest_llmperf.ab.blocks import BlockSeries, environment_of
from pytest_llmperf.ab.checkout import (
    commit_of,
    is_ignored,
    repository_root,
    tracked_files,
    tree_of,
    working_tree_commit,
    worktrees,
)
from pytest_llmperf.ab.installed import Environment
from pytest_llmperf.cli.ab_output import progress_lines, result_lines
from pytest_llmperf.ab.packages import Locator, find_packages
from pytest_llmperf.ab.side import Recipe, Repository, SideBuilder, prepare_sides
from pytest_llmperf.ab.stopping import Effort, measure_until_decided
from pytest_llmperf.errors import LlmperfError, UsageError
from pytest_llmperf.report.terminal import LONGEST_LIST
from pytest_llmperf.runner.profiling import profiles_of
from pytest_llmperf.storage.comparability import FIELDS, compare_environments
from pytest_llmperf.storage.provenance import Imported, site_folders
from pytest_llmperf.storage.schema import Baseline, TestResult
from pytest_llmperf.system.paths import run_folder, user_folder
from pytest_llmperf.system.pytest_process import without_outputs
from pytest_llmperf.text import some
from pytest_llmperf.verdict.explanation import Profiles, explanations, slower
from pytest_llmperf.verdict.outcome import Entry, RunOutcome
from pytest_llmperf.verdict.paired import LOOKS
from pytest_llmperf.verdict.verdict_file import verdict_file, write_verdicts

WORKING_TREE = "the working tree"
NONE = "none"


@dataclass(frozen=True, kw_only=True)
class PairedComparison:
    """Settings of a comparison: two revisions, how to build them, what to run, and for how long."""

    base: str
    head: str | None
    arguments: Sequence[str]
    base_recipe: Recipe
    head_recipe: Recipe
    budget_s: float | None = None
    most_blocks: int = LOOKS[-1]
    restart: bool = False
    same_environment: bool = False
    """Whether both sides run with the installed packages even if their dependencies differ."""
    verdicts: Path | None = None
    explain: bool = True
    """Whether to profile regressions, on both sides."""


def compare(wanted: PairedComparison, *, here: Path, say: Callable[[str], None]) -> RunOutcome:
    """Compare two revisions; print the progress after each block, and the results at the end.

    Args:
        wanted: what to compare.
        here: the user's working directory.
        say: prints a line.

    Raises:
        LlmperfError: a revision does not exist or does not build, or a process left nothing to compare.
    """
    start = time.monotonic()
    series = _prepare(wanted, here.resolve(), say)
    if series.blocks:
        say(f"llmperf ab: goes on after {len(series.blocks)} blocks that were kept; --restart forgets them")
    effort = Effort(most_blocks=wanted.most_blocks, deadline=start + wanted.budget_s if wanted.budget_s else None)

    def tell(standing: Standing) -> None:
        for line in progress_lines(standing, series.blocks, most=effort.most_blocks, left_s=effort.left_s):
            say(line)

    standing = measure_until_decided(series, effort, tell)
    outcome = _outcome(series, standing)
    if wanted.explain:
        outcome.entries = _explained(outcome.entries, series, here, say)
    for line in result_lines(outcome, series.blocks, null_trip=standing.null_trip):
        say(line)
    return outcome


def compare_and_exit(wanted: PairedComparison, *, here: Path, say: Callable[[str], None]) -> int:
    """Compare, and return the exit code: 1 if a gating cell regressed or head cannot measure it, else 0."""
    outcome = compare(wanted, here=here, say=say)
    code = int(outcome.failed)
    if wanted.verdicts:
        command = ["llmperf", "ab", wanted.base, *([wanted.head] if wanted.head else []), "--"]
        found = verdict_file(outcome, command=[*command, *without_outputs(wanted.arguments)], exit_code=code)
        write_verdicts(wanted.verdicts, found)
    return code


def budget_seconds(text: str) -> float:
    """Parse seconds from ``20m``, ``90s``, ``1.5h`` or a plain number of seconds.

    Raises:
        UsageError: the text has another form.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if not found or float(found[1]) <= 0:
        raise UsageError(f"--budget {text!r}: expected a time such as 20m, 90s or 1.5h")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


def _prepare(wanted: PairedComparison, here: Path, say: Callable[[str], None]) -> BlockSeries:
    root = repository_root(here)
    base = commit_of(root, wanted.base)
    head = commit_of(root, wanted.head) if wanted.head else working_tree_commit(root)
    arguments = [relative_argument(word, root, here) for word in without_outputs(wanted.arguments)]
    recipes = (wanted.base_recipe, wanted.head_recipe)
    asked = [str(here), base, head, arguments, [asdict(recipe) for recipe in recipes], wanted.same_environment]
    folder = user_folder("ab", f"{base[:8]}-{head[:8]}-{_digest(asked)}-{_digest(_environment_keys(recipes))}")
    _begin(folder, say, restart=wanted.restart)
    say(f"llmperf ab: base {wanted.base} ({base[:12]}), head {wanted.head or WORKING_TREE} ({head[:12]}), in {folder}")
    if tree_of(root, base) == tree_of(root, head):
        say("llmperf ab: base and head are the same tree: this is an A/A comparison, which shows the machine's noise")
    say("llmperf ab: preparing base and head")
    repository = _repository(root, here)
    builders = [
        SideBuilder(name, commit, recipe, repository=repository, place=folder / name)
        for name, commit, recipe in zip(("base", "head"), (base, head), recipes, strict=True)
    ]
    sides = prepare_sides(
        builders, same_environment=wanted.same_environment, say=lambda line: say(f"llmperf ab: {line}")
    )
    return BlockSeries(folder / "blocks", *sides, arguments=arguments, seed=int(_digest(asked), 16))


def _repository(root: Path, here: Path) -> Repository:
    trees, sites = worktrees(root), site_folders()
    locate = Locator(trees, sites)
    held = find_packages(locate, root, here, tracked_files(root))
    return Repository(root=root, here=here, worktrees=trees, sites=sites, held=held, locate=locate)


def _environment_keys(recipes: Sequence[Recipe]) -> list[str]:
    """Return the keys of the environments; stored blocks are valid for these only."""
    pythons = dict.fromkeys([sys.executable, *(recipe.python for recipe in recipes if recipe.python)])
    return [Environment(python, variables=os.environ, folder=Path(sys.prefix)).key for python in pythons]


def _begin(folder: Path, say: Callable[[str], None], *, restart: bool) -> None:
    comparison, _, _ = folder.name.rpartition("-")
    if restart:
        shutil.rmtree(folder, ignore_errors=True)
    elif not folder.exists() and any(folder.parent.glob(f"{comparison}-*")):
        say("llmperf ab: the environment has changed since blocks of this comparison were kept: it starts anew")


def _digest(what: object) -> str:
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:8]


def relative_argument(word: str, root: Path, here: Path) -> str:
    """Make a path into the user's checkout relative, so that it points into each side's own checkout.

    Paths that git ignores, such as a folder of weights, are in neither checkout and stay as they are.
    """
    path, separator, rest = word.partition("::")
    if not Path(path).is_absolute() or not Path(path).is_relative_to(root) or is_ignored(root, path):
        return word
    return os.path.relpath(path, here) + separator + rest


def _explained(entries: list[Entry], series: BlockSeries, here: Path, say: Callable[[str], None]) -> list[Entry]:
    """Return the entries; those with a timed regression get an explanation of what takes longer on head."""
    tests = [entry.test for entry in entries if slower(entry.verdicts)]
    if not tests:
        return entries
    say(f"llmperf ab: profiling what regressed, on both sides: {some(tests, LONGEST_LIST)}")
    traces = ""
    try:
        folder = run_folder(here, "traces", entries[0].run.run_id)
        base, head = (profiles_of(arm, *series.profile(arm, tests, folder / arm)) for arm in ("base", "head"))
        traces = str(folder)
    except (OSError, LlmperfError) as error:  # the verdicts are valid without profiles
        base, head = Profiles("base", why_not=str(error)), Profiles("head")
    return [
        entry.model_copy(update={"explanations": explanations(entry.verdicts, base, head, traces=traces)})
        for entry in entries
    ]


def _outcome(series: BlockSeries, standing: Standing) -> RunOutcome:
    first = series.blocks[0]
    head, base = first.arms["head"], first.arms["base"]
    if head.baseline is None or head.run is None:
        errors = "; ".join(f"{test}: {standing.error(test)}" for test in standing.tests)
        raise UsageError(f"head measured nothing: {errors}")
    results = {test: [verdict for verdict in standing.verdicts if verdict.cell.test == test] for test in standing.tests}
    entries = [
        Entry(
            test=test,
            device_key=head.baseline.device_key,
            run=head.run,
            results=_results(head.baseline, test),
            verdicts=verdicts,
            error=standing.error(test),
        )
        for test, verdicts in results.items()
    ]
    found = compare_environments(environment_of(base), environment_of(head)) if base.run else []
    differences = [*map(str, found), *_other_versions(first.imported)]
    return RunOutcome(
        compared=True, entries=entries, missing=standing.missing, differences=differences, sides=series.sides
    )


def _other_versions(imported: Mapping[str, Imported]) -> list[str]:
    """Return distributions with different versions on the sides, besides those in a run's environment."""
    base, head = (imported.get(arm, Imported()).distributions for arm in ("base", "head"))
    names = [name for name in base | head if name.replace("-", "_") not in FIELDS and base.get(name) != head.get(name)]
    return [f"{name}: {base.get(name, NONE)} -> {head.get(name, NONE)}" for name in sorted(names)]


def _results(head: Baseline, test: str) -> list[TestResult]:
    """Return head's results of a test from the first block, which measures all tests."""
    return [
        TestResult(
            workload=head.workloads[one.workload],
            observation=one,
            cells=[cell for cell in head.cells if (cell.test, cell.workload) == (test, one.workload)],
        )
        for one in head.observations
        if one.test == test
    ]
