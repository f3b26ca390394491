"""Compare two git revisions: resolve and build both, and turn the measured blocks into a run's results."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pytest_llmperf.ab.analysis import Standing
from pytest_llmperf.ab.blocks import ARMS, BlockSeries, environment_of
from pytest_llmperf.ab.checkout import (
    commit_of,
    first_parent,
    is_ignored,
    repository_root,
    tracked_files,
    tree_of,
    working_tree_commit,
    worktrees,
)
from pytest_llmperf.ab.installed import Environment
from pytest_llmperf.ab.lanes import ANY_DEVICE, Lane
from pytest_llmperf.ab.packages import Locator, find_packages
from pytest_llmperf.ab.requested import refuse_own_packages, shown
from pytest_llmperf.ab.side import Recipe, Repository, Side, SideBuilder, prepare_sides
from pytest_llmperf.errors import LlmperfError, UsageError
from pytest_llmperf.runner.profiling import profiles_of
from pytest_llmperf.storage.comparability import FIELDS, compare_environments, known_to_differ
from pytest_llmperf.storage.provenance import Imported, SideProof, site_folders
from pytest_llmperf.storage.schema import Baseline, PhaseWork, TestResult
from pytest_llmperf.system.paths import run_folder, user_folder
from pytest_llmperf.system.pytest_process import without_outputs
from pytest_llmperf.verdict.code_change import CodeChange, code_between, repeating
from pytest_llmperf.verdict.outcome import Entry, RunOutcome
from pytest_llmperf.verdict.paired import LOOKS
from pytest_llmperf.verdict.time_change import Profiles, time_changes
from pytest_llmperf.verdict.work_change import BaseWork, WorkChange, work_changes

NONE = "none"


@dataclass(frozen=True, kw_only=True)
class PairedComparison:
    """Settings of a comparison: two revisions, how to build them, what to run, and for how long."""

    base: str
    head: str | None
    """``None`` for the working tree as it is."""
    arguments: Sequence[str]
    base_recipe: Recipe
    head_recipe: Recipe
    budget_s: float | None = None
    most_blocks: int = LOOKS[-1]
    restart: bool = False
    """Whether to delete the blocks of an interrupted comparison."""
    same_environment: bool = False
    """Whether both sides run with the installed packages even if their dependencies differ."""
    explain: bool = True
    """Whether to profile regressions, on both sides."""
    lanes: Sequence[Lane] = (ANY_DEVICE,)
    """Devices that measure blocks side by side."""

    @property
    def recipes(self) -> dict[str, Recipe]:
        """How to build each side."""
        return {"base": self.base_recipe, "head": self.head_recipe}

    @property
    def base_name(self) -> str:
        """The revision of base, or what base runs with."""
        return ", ".join(map(shown, self.base_recipe.requirements)) or self.base


@dataclass(frozen=True, kw_only=True)
class ComparisonPlan:
    """Two resolved commits, and the folder that keeps the blocks of their comparison."""

    wanted: PairedComparison
    here: Path
    root: Path
    base: str
    head: str
    arguments: Sequence[str]
    """pytest's, valid in both checkouts."""
    folder: Path
    seed: int
    is_edited: bool = False
    """Whether head is the working tree with changes that are not committed."""

    @property
    def is_null(self) -> bool:
        """Whether base and head are the same tree in the same environment (A/A)."""
        same_recipe = self.wanted.base_recipe == self.wanted.head_recipe
        return same_recipe and tree_of(self.root, self.base) == tree_of(self.root, self.head)

    @property
    def has_other_environment(self) -> bool:
        """Whether blocks of this comparison were kept, but were measured in an environment that has changed since."""
        comparison, _, _ = self.folder.name.rpartition("-")
        return not self.folder.exists() and any(self.folder.parent.glob(f"{comparison}-*"))


def plan_comparison(wanted: PairedComparison, *, here: Path) -> ComparisonPlan:
    """Resolve both revisions.

    Args:
        wanted: what to compare.
        here: the user's working directory.

    Raises:
        LlmperfError: a revision does not exist.
    """
    here = here.resolve()
    root = repository_root(here)
    base = commit_of(root, wanted.base)
    head = commit_of(root, wanted.head) if wanted.head else working_tree_commit(root)
    is_edited = wanted.head is None and head != commit_of(root, "HEAD")
    arguments = [relative_argument(word, root, here) for word in without_outputs(wanted.arguments)]
    recipes = [*wanted.recipes.values()]
    asked: list[object] = [
        str(here),
        base,
        head,
        ARMS,
        arguments,
        [asdict(recipe) for recipe in recipes],
        wanted.same_environment,
    ]
    if devices := [lane.name for lane in wanted.lanes if lane.name]:
        asked.append(devices)
    name = f"{base[:8]}-{head[:8]}-{digest_of(asked)}-{digest_of(_environment_keys(recipes))}"
    return ComparisonPlan(
        wanted=wanted,
        here=here,
        root=root,
        base=base,
        head=head,
        arguments=arguments,
        folder=user_folder("ab", name),
        seed=int(digest_of(asked), 16),
        is_edited=is_edited,
    )


def prepare_comparison(plan: ComparisonPlan) -> tuple[BlockSeries, list[str]]:
    """Build both revisions.

    Returns:
        The series with the blocks that were kept, and notes on dependencies that the sides share.

    Raises:
        LlmperfError: a revision does not build, or a requested package cannot be installed or is the repository's.
    """
    (base, head), notes = build_sides(plan)
    return series_of_blocks(plan, base, head), notes


def build_sides(plan: ComparisonPlan) -> tuple[list[Side], list[str]]:
    """Build both revisions, or reuse those of an interrupted comparison.

    Returns:
        Base and head, and notes on dependencies that they share.

    Raises:
        LlmperfError: a revision does not build, or a requested package cannot be installed or is the repository's.
    """
    if plan.wanted.restart:
        shutil.rmtree(plan.folder, ignore_errors=True)
    repository = _repository(plan.root, plan.here)
    commits, held = {"base": plan.base, "head": plan.head}, {package.name for package in repository.held.packages}
    for name, recipe in plan.wanted.recipes.items():
        refuse_own_packages(recipe.requirements, held, side=name)
    builders = [
        SideBuilder(name, commits[name], recipe, repository=repository, place=plan.folder / name)
        for name, recipe in plan.wanted.recipes.items()
    ]
    return prepare_sides(builders, same_environment=plan.wanted.same_environment)


def series_of_blocks(plan: ComparisonPlan, base: Side, head: Side) -> BlockSeries:
    """Return the series of a comparison, with the blocks that were kept."""
    return BlockSeries(
        plan.folder / "blocks", base, head, arguments=plan.arguments, seed=plan.seed, lanes=plan.wanted.lanes
    )


def explain_regressions(
    entries: Sequence[Entry], tests: Sequence[str], series: BlockSeries, *, here: Path
) -> list[Entry]:
    """Profile tests on both sides; return the entries with the times of their operators.

    Args:
        entries: results of all tests.
        tests: keys of the tests with a timed regression.
        series: of the comparison.
        here: the user's working directory; its ``.llmperf`` folder keeps the traces.
    """
    traces = ""
    try:
        folder = run_folder(here, "traces", entries[0].run.run_id)
        base, head = (profiles_of(arm, *series.profile(arm, tests, folder / arm)) for arm in ("base", "head"))
        traces = str(folder)
    except (OSError, LlmperfError) as error:  # the verdicts are valid without profiles
        base, head = Profiles("base", why_not=str(error)), Profiles("head")
    return [
        entry.model_copy(update={"time_changes": time_changes(entry.verdicts, base, head, traces=traces)})
        for entry in entries
    ]


def code_of(plan: ComparisonPlan) -> CodeChange:
    """Return what lies between base and head, as far as git knows; a working tree counts from its commit."""
    head = first_parent(plan.root, plan.head) if plan.is_edited else plan.head
    arguments = without_outputs(plan.wanted.arguments)
    return code_between(plan.root, plan.base, head).model_copy(
        update={"now_is_dirty": plan.is_edited, "repeat": tuple(arguments)}
    )


def comparison_outcome(series: BlockSeries, standing: Standing, code: CodeChange | None = None) -> RunOutcome:
    """Return the results of a comparison.

    Args:
        series: of the comparison.
        standing: verdicts after its last block.
        code: what lies between base and head, with pytest's arguments.

    Raises:
        UsageError: head measured nothing.
    """
    first = series.blocks[0]
    head, base = first.arms["head"], first.arms["base"]
    if head.baseline is None or head.run is None:
        errors = "; ".join(f"{test}: {standing.error(test)}" for test in standing.tests)
        raise UsageError(f"head measured nothing: {errors}")
    results = {test: results_of(head.baseline, test) for test in standing.tests}
    found = compare_environments(environment_of(base), environment_of(head)) if base.run else []
    versions = [*_other_versions(first.imported), *_other_sources(first.imported, series.sides)]
    code = (code or CodeChange()).model_copy(update={"differences": (*known_to_differ(found), *versions)})
    entries = [
        Entry(
            test=test,
            device_key=head.baseline.device_key,
            run=head.run,
            results=measured,
            verdicts=[verdict for verdict in standing.verdicts if verdict.cell.test == test],
            work_changes=counted_changes(measured, base.baseline, name="base"),
            code_changes=[code.model_copy(update={"repeat": repeating(test, code.repeat)})],
            error=standing.error(test),
        )
        for test, measured in results.items()
    ]
    return RunOutcome(
        compared=True,
        entries=entries,
        missing=standing.missing,
        differences=[*map(str, found), *versions],
        sides=series.sides,
    )


def results_of(measured: Baseline, test: str) -> list[TestResult]:
    """Return a process's results of a test, one for each workload."""
    return [
        TestResult(
            workload=measured.workloads[one.workload],
            observation=one,
            cells=[cell for cell in measured.cells if (cell.test, cell.workload) == (test, one.workload)],
            work=_phases(measured, test, one.workload),
        )
        for one in measured.observations
        if one.test == test
    ]


def counted_changes(results: Sequence[TestResult], base: Baseline | None, *, name: str) -> list[WorkChange]:
    """Compare the counted work of results with that of a base, which is called ``name``."""
    sides = (
        (one, _phases(base, one.observation.test, one.workload.hash) if base else {}) for one in results if one.work
    )
    return [
        change
        for one, phases in sides
        for change in work_changes(one, BaseWork(name, phases, "it counted no work of this workload"))
    ]


def relative_argument(word: str, root: Path, here: Path) -> str:
    """Make a path into the user's checkout relative, so that it points into each side's own checkout.

    Paths that git ignores, such as a folder of weights, are in neither checkout and stay as they are.
    """
    path, separator, rest = word.partition("::")
    if not Path(path).is_absolute() or not Path(path).is_relative_to(root) or is_ignored(root, path):
        return word
    return os.path.relpath(path, here) + separator + rest


def digest_of(what: object) -> str:
    """Return eight hexadecimal digits that identify a JSON value, for the names of folders."""
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:8]


def _repository(root: Path, here: Path) -> Repository:
    trees, sites = worktrees(root), site_folders()
    locate = Locator(trees, sites)
    held = find_packages(locate, root, here, tracked_files(root))
    return Repository(root=root, here=here, worktrees=trees, sites=sites, held=held, locate=locate)


def _environment_keys(recipes: Sequence[Recipe]) -> list[str]:
    """Return the keys of the environments; stored blocks are valid for these only."""
    pythons = dict.fromkeys([sys.executable, *(recipe.python for recipe in recipes if recipe.python)])
    return [Environment(python, variables=os.environ, folder=Path(sys.prefix)).key for python in pythons]


def _other_versions(imported: Mapping[str, Imported]) -> list[str]:
    """Return distributions with different versions on the sides, besides those in a run's environment."""
    base, head = (imported.get(arm, Imported()).distributions for arm in ("base", "head"))
    names = [name for name in base | head if name.replace("-", "_") not in FIELDS and base.get(name) != head.get(name)]
    return [f"{name}: {base.get(name, NONE)} -> {head.get(name, NONE)}" for name in sorted(names)]


def _other_sources(imported: Mapping[str, Imported], sides: Mapping[str, SideProof]) -> Iterator[str]:
    """Yield requested files and commits of distributions whose versions are equal on both sides."""
    addresses = {arm: dict(map(_address, proof.requirements)) for arm, proof in sides.items()}
    base, head = (addresses.get(arm, {}) for arm in ("base", "head"))
    versions = [imported.get(arm, Imported()).distributions for arm in ("base", "head")]
    for name in sorted(base | head):
        same, *others = {one.get(name, NONE) for one in versions}
        if not others and base.get(name) != head.get(name):
            yield f"{name}: {base.get(name) or same} -> {head.get(name) or same}"


def _address(requirement: str) -> tuple[str, str]:
    parsed = Requirement(requirement)
    return canonicalize_name(parsed.name), parsed.url or ""


def _phases(side: Baseline, test: str, workload: str) -> dict[str, PhaseWork]:
    return next((row.phases for row in side.work if (row.test, row.workload) == (test, workload)), {})
