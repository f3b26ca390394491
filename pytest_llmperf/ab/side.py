"""One side of a comparison: builds the checkout and the environment that run a revision's perf tests."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.machinery import PathFinder
from pathlib import Path, PurePosixPath

from packaging.version import Version

from pytest_llmperf.ab.checkout import check_out, tracked_files
from pytest_llmperf.ab.dependencies import (
    Dependencies,
    Differing,
    Installed,
    Wish,
    dependencies_of,
    differences,
    metadata_wishes,
)
from pytest_llmperf.ab.installed import Environment
from pytest_llmperf.ab.overlay import create_overlay, install_command, python_of
from pytest_llmperf.ab.package_versions import unlisted
from pytest_llmperf.ab.packages import Locator, Package, RepositoryPackages, build_backend, project_folders
from pytest_llmperf.ab.requested import Missing, Requested, parse_requested
from pytest_llmperf.errors import UsageError
from pytest_llmperf.storage.provenance import SIDE_VARIABLE, SidePlaces
from pytest_llmperf.system.git import git_environment
from pytest_llmperf.system.paths import USERS_FOLDER_VARIABLE
from pytest_llmperf.text import printable, some

WAYS_OUT = (
    "make the difference with --prepare CMD, bring environments with --python-base and --python-head, "
    "or say --same-environment if both sides are to run with what is installed here"
)


@dataclass(frozen=True)
class Side:
    """The checkout, interpreter and environment variables with which one revision's perf tests run."""

    name: str
    commit: str
    folder: Path
    """Working directory: in the checkout, at the path that the user's has in the repository."""
    python: str
    environment: Mapping[str, str]
    place: Path | None = None
    """Folder of its checkout and environment. Its processes must prove that they ran code from there. ``None`` if both
    sides are the worktree."""
    requirements: tuple[str, ...] = ()
    """Requirements that the user asks for on this side."""


@dataclass(frozen=True)
class Recipe:
    """How to build a side.

    ``python`` is an interpreter of the user's own environment for this side; then nothing is installed. Otherwise the
    side gets an overlay over our environment: packages of the repository come from its checkout, and all others from
    ours, except dependencies in which the revisions differ. ``command`` replaces installing. ``requirements`` (from
    `parse_requested`) are installed first, whatever the revision's files say about these distributions.
    """

    python: str | None = None
    command: str | None = None
    requirements: tuple[str, ...] = ()

    def with_package(self, name: str, version: Version, *, option: str) -> Recipe:
        """Return a recipe that also installs one version of a package.

        Args:
            name: of the package.
            version: one that the index lists.
            option: the command-line option that names the package, for messages.

        Raises:
            UsageError: as `parse_requested`.
        """
        return replace(self, requirements=parse_requested([*self.requirements, f"{name}=={version}"], option=option))


@dataclass(frozen=True, kw_only=True)
class Repository:
    """The user's repository and environment, which are only read."""

    root: Path
    here: Path
    """The working directory."""
    worktrees: Sequence[Path]
    sites: Sequence[Path]
    """Folders of installed packages, in search order."""
    held: RepositoryPackages
    """The repository's packages in the environment."""
    locate: Locator
    """Locates paths in the repository."""

    @property
    def dependency_folders(self) -> list[PurePosixPath]:
        """Folders that are searched for dependency files: the working directory, its parents, and each package's."""
        inside = PurePosixPath(self.here.relative_to(self.root).as_posix())
        return list(dict.fromkeys([inside, *inside.parents, *(package.folder for package in self.held.packages)]))


class SideBuilder:
    """Builds one side in its own folder.

    Args:
        name: ``base`` or ``head``.
        commit: its hash.
        recipe: how to build it.
        repository: of the user.
        place: an empty folder, or one of an earlier build.
    """

    def __init__(self, name: str, commit: str, recipe: Recipe, *, repository: Repository, place: Path) -> None:
        self._recipe = recipe
        self._requested = Requested(recipe.requirements)
        self._repository = repository
        self._checkout = place / "checkout"
        self._place = place
        self._built: list[str] = []
        python = recipe.python or str(python_of(place / "environment"))
        folder = self._checkout / repository.here.relative_to(repository.root)
        self.side = Side(name, commit, folder, python, self._variables(python), place, recipe.requirements)

    @property
    def is_prepared(self) -> bool:
        """Whether an earlier run of this comparison has built it."""
        return self._done.exists()

    @property
    def brings_environment(self) -> bool:
        """Whether the user, or the prepare command, is responsible for what is installed."""
        return bool(self._recipe.python or self._recipe.command)

    def check_out(self) -> None:
        """Create its checkout.

        Raises:
            UsageError: git fails, or the revision lacks the working directory.
        """
        shutil.rmtree(self._checkout, ignore_errors=True)  # left by an interrupted build
        check_out(self._repository.root, self.side.commit, self._checkout)
        if not self.side.folder.is_dir():
            inside = self.side.folder.relative_to(self._checkout)
            raise UsageError(f"{self.side.name}: there is no folder {inside} in revision {self.side.commit[:12]}")

    def dependencies(self) -> Dependencies:
        """Return the dependencies that its files declare.

        Raises:
            UsageError: a file cannot be read.
        """
        with self._naming_itself():
            return dependencies_of(self._checkout, self._files, self._repository.dependency_folders)

    def create_environment(self, options: Sequence[str]) -> None:
        """Create its environment, with the packages that the user asks for and the dependencies that these change.

        Args:
            options: index options of its requirement files.

        Raises:
            UsageError: a package cannot be installed; the output is in the side's folder.
        """
        if self._recipe.python:
            return
        repository = self._repository
        create_overlay(
            self._place / "environment",
            own=self._place,
            checkout=self._checkout,
            repository=repository.worktrees,
            sites=repository.sites,
            left_out=sorted(repository.held.links),
        )
        tried: list[list[Missing]] = []
        while (missing := self._missing) and missing not in tried:  # uv installs no dependencies of dependencies
            files = [one for one in missing if one.requirement.url]
            self._install_requested(files, options, anew=True)  # the user's environment may have the same version
            self._install_requested([one for one in missing if one not in files], options, anew=False)
            tried.append(missing)

    def install(self, differing: Differing) -> None:
        """Install dependencies that differ from the other side's, and the repository's packages.

        Raises:
            UsageError: a package cannot be installed or built; the output is in the side's folder.
        """
        if self._recipe.python:
            return
        if self._recipe.command:
            self._run(shlex.split(self._recipe.command), self._does_not_build)
            return
        self.satisfy(differing)
        for package in self._repository.held.packages:
            self._build(package)

    def satisfy(self, differing: Differing) -> None:
        """Install the differing dependencies that its environment lacks.

        Raises:
            UsageError: one cannot be installed.
        """
        unmet = self._unmet(differing, self.installed) if differing.wishes else []
        if unmet and not self.brings_environment:
            lines = [*differing.options, *(wish.texts[0] for wish in unmet)]
            self._install(lines, lambda words: self._refusal(unmet, f"cannot install it: {words}"))

    def verify(self, differing: Differing) -> None:
        """Reject an environment that does not satisfy this side's differing dependencies.

        Raises:
            UsageError: it lacks one.
        """
        installed = self.installed if differing.wishes else {}
        if unmet := self._unmet(differing, installed):
            there = installed.get(unmet[0].name)
            raise UsageError(self._refusal(unmet, f"the environment has {there.version if there else 'none'}"))

    def verify_requested(self) -> None:
        """Reject an environment that does not satisfy what the user asks for.

        Raises:
            UsageError: it lacks a package, or has another version.
        """
        if missing := self._missing:
            first = missing[0]
            raise UsageError(f"{self._who} needs {first}, and the environment has {first.found or 'none'}")

    def requested_notes(self) -> Iterator[str]:
        """Yield a note for each distribution that requires other versions than the user asks for."""
        notes = self._requested.broken(self._environment) if self._requested.names else ()
        return (f"{self.side.name}: {note}" for note in notes)

    def metadata(self) -> Dependencies:
        """Return the dependencies in the metadata of its built packages."""
        if not self._built:  # listing the environment takes a process
            return Dependencies([])
        environment = self._environment
        wishes = (metadata_wishes(name, environment.requires(name)) for name in self._built)
        return Dependencies([wish for found in wishes for wish in found])

    def finish(self) -> Side:
        """Mark the side as built, so that a resumed comparison reuses it, and return it."""
        self._done.write_text(self.side.commit, encoding="utf-8")
        return self.side

    @property
    def installed(self) -> dict[str, Installed]:
        """The distributions that it runs with, by normalized name."""
        return self._environment.installed

    @property
    def requested_names(self) -> frozenset[str]:
        """Normalized names of the distributions that the user asks for."""
        return self._requested.names

    @property
    def _missing(self) -> list[Missing]:
        return self._requested.missing(self._environment) if self._requested.names else []

    def _unmet(self, differing: Differing, installed: Mapping[str, Installed]) -> list[Wish]:
        """Return what its environment lacks; what the user asks for counts more than what files say."""
        return [wish for wish in differing.unmet(installed) if wish.name not in self._requested.names]

    @property
    def _done(self) -> Path:
        return self._place / "prepared"

    @property
    def _files(self) -> list[str]:
        return tracked_files(self._checkout)

    @property
    def _environment(self) -> Environment:
        return Environment(self.side.python, variables=self.side.environment, folder=self._place)

    def _install_requested(self, missing: Sequence[Missing], options: Sequence[str], *, anew: bool) -> None:
        if missing:
            lines = [*options, *(str(one.requirement) for one in missing)]
            self._install(lines, lambda words: self._not_installed(missing, words), anew=anew)

    def _not_installed(self, missing: Sequence[Missing], words: str) -> str:
        why = next((found for one in missing if (found := unlisted(one.requirement))), "") or words
        return f"{self._who}: cannot install {some([*map(str, missing)], 3)}: {why}"

    def _install(self, lines: Sequence[str], refusal: Callable[[str], str], *, anew: bool = False) -> None:
        """Install lines of a requirements file, with what they need, or ``anew``: these alone."""
        file = self._place / "requirements.txt"
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        command = install_command(self.side.python, dependencies=not anew)
        self._run([*command, *(["--force-reinstall"] if anew else []), "-r", str(file)], refusal)

    def _build(self, package: Package) -> None:
        """Install a package of the repository from this side's checkout, where its folder may be another one."""
        with self._naming_itself():
            folder = self._folder_of(package)
            backend = build_backend(self._checkout / folder) if folder is not None else None
        if folder is None or backend is None:  # this revision has no such package
            return
        command = install_command(self.side.python, dependencies=False)
        self._run([*command, *_isolation(backend), f"./{folder}"], self._does_not_build)
        if package.name:
            self._built.append(package.name)

    def _folder_of(self, package: Package) -> PurePosixPath | None:
        if build_backend(self._checkout / package.folder):
            return package.folder
        return project_folders(self._checkout, self._files).get(package.name)

    @contextmanager
    def _naming_itself(self) -> Iterator[None]:
        try:
            yield
        except UsageError as error:
            raise UsageError(f"{self.side.name} ({self.side.commit[:12]}): {error}") from error

    def _does_not_build(self, words: str) -> str:
        return (
            f"{self._who} does not build: {words}. "
            f"Build it with --prepare CMD, or bring an environment with --python-{self.side.name}"
        )

    def _refusal(self, unmet: Sequence[Wish], why: str) -> str:
        wishes = some([f"{wish.texts[0]} ({wish.file})" for wish in unmet], 3)
        return f"{self._who} asks for {wishes}, and {why}: {WAYS_OUT}"

    @property
    def _who(self) -> str:
        return f"{self.side.name} ({self.side.commit[:12]})"

    def _run(self, command: Sequence[str], refusal: Callable[[str], str]) -> None:
        log = self._place / "prepare.log"
        with log.open("ab") as file:
            start = file.tell()
            try:
                code = subprocess.run(
                    command, cwd=self._checkout, env=dict(self.side.environment), stdin=subprocess.DEVNULL,
                    stdout=file, stderr=file, check=False,
                ).returncode  # fmt: skip
            except OSError as error:
                raise UsageError(f"{self.side.name}: cannot run {command[0]!r}: {error.strerror}") from error
        if code:
            text = log.read_bytes()[start:].decode("utf-8", errors="replace")
            words = printable(_telling_line(text.strip().splitlines()).strip())
            raise UsageError(refusal(f"{words} (see {log})"))

    def _variables(self, python: str) -> dict[str, str]:
        """Return our environment variables, with paths into the user's checkout moved into this one."""
        variables = git_environment()
        if paths := variables.get("PYTHONPATH"):
            variables["PYTHONPATH"] = os.pathsep.join(map(self._moved, paths.split(os.pathsep)))
        if not self._recipe.python:
            variables["VIRTUAL_ENV"] = str(self._place / "environment")
            variables["PIP_USER"] = "0"  # an environment of its own has no user site
        variables["PATH"] = os.pathsep.join((str(Path(python).parent), variables.get("PATH", "")))
        variables[SIDE_VARIABLE] = str(self._write_places())
        variables[USERS_FOLDER_VARIABLE] = str(self._repository.here)
        return variables

    def _write_places(self) -> Path:
        repository, path = self._repository, self._place / "places.json"
        places = SidePlaces(
            repository=[folder.resolve() for folder in repository.worktrees],
            own=self._place.resolve(),
            comparison=self._place.parent.resolve(),
            sites=list(repository.sites),
            copies=sorted(repository.held.copies),
            shares_environment=not self._recipe.python,
        )
        self._place.mkdir(parents=True, exist_ok=True)
        path.write_text(places.model_dump_json(indent=1), encoding="utf-8")
        return path

    def _moved(self, path: str) -> str:
        inside = self._repository.locate(Path(path)) if path else None
        return path if inside is None else str(self._checkout / inside)


def prepare_sides(builders: Sequence[SideBuilder], *, same_environment: bool) -> tuple[list[Side], list[str]]:
    """Check out and build base and head, each with its own dependencies if they differ.

    Args:
        builders: of base and of head.
        same_environment: whether both run with the installed packages, whatever they declare.

    Returns:
        Both sides, and notes on dependencies that the sides declare differently but share.

    Raises:
        UsageError: git, a build or an installation failed, or the sides' dependencies differ in files that pip cannot
            install.
    """
    if all(builder.is_prepared for builder in builders):
        return [builder.side for builder in builders], []
    for builder in builders:
        builder.check_out()
    declared = [builder.dependencies() for builder in builders]
    found = _differing(declared)
    notes = []
    if same_environment and (files := _files(found)):
        notes.append(f"base and head differ in {files}: both run with what is installed here")
    wanted = [Differing(), Differing()] if same_environment else found
    _refuse_unreadable(builders, wanted)
    for builder, dependencies in zip(builders, declared, strict=True):
        builder.create_environment(dependencies.options)
    for builder, differing in zip(builders, wanted, strict=True):
        builder.install(differing)
        builder.verify(differing)
    if not same_environment:
        built = _differing([builder.metadata() for builder in builders])
        for builder, differing in zip(builders, built, strict=True):
            builder.satisfy(differing)
            builder.verify(differing)
        notes += _shared(builders, found)
    for builder in builders:
        builder.verify_requested()
        notes += builder.requested_notes()
    notes += _same_versions(builders)
    return [builder.finish() for builder in builders], notes


def _differing(dependencies: Sequence[Dependencies]) -> list[Differing]:
    base, head = dependencies
    return [differences(base, head), differences(head, base)]


def _files(found: Sequence[Differing]) -> str:
    return some(list(dict.fromkeys(file for differing in found for file in differing.files)), 3)


def _refuse_unreadable(builders: Sequence[SideBuilder], wanted: Sequence[Differing]) -> None:
    """Reject differences that pip cannot install, unless the user or a command makes the environments."""
    files = wanted[0].unreadable
    if files and not all(builder.brings_environment for builder in builders):
        raise UsageError(f"base and head differ in {some(files, 3)}, which pip cannot install: {WAYS_OUT}")


def _shared(builders: Sequence[SideBuilder], found: Sequence[Differing]) -> Iterator[str]:
    """Yield the dependencies that the sides declare differently, but run in one version that satisfies both."""
    asked = frozenset[str]().union(*(builder.requested_names for builder in builders))
    wishes = {wish.name: wish for differing in found for wish in differing.wishes if wish.name not in asked}
    if not wishes:
        return
    base, head = (builder.installed for builder in builders)
    for name, wish in wishes.items():
        if name in base and base[name] == head.get(name):
            yield printable(
                f"base and head declare {name} differently ({wish.file}): both run with {base[name].version}, "
                "which satisfies both"
            )


def _same_versions(builders: Sequence[SideBuilder]) -> Iterator[str]:
    """Yield a note if the packages that the user asks for give both sides the same versions."""
    asked = [builder.side.requirements for builder in builders]
    if not any(asked) or any(" @ " in text for texts in asked for text in texts):
        return
    base, head = ({name: one.version for name, one in builder.installed.items()} for builder in builders)
    if base == head:
        yield "base and head run with the same version of every package, whatever was asked for on each side"


def _isolation(backend: str) -> Sequence[str]:
    """Return the option against build isolation, if the build backend is installed.

    Building then needs no registry, and compiles against the torch that will run.
    """
    module = backend.partition(".")[0].partition(":")[0]
    return ("--no-build-isolation",) if module.isidentifier() and PathFinder.find_spec(module) else ()


def _telling_line(lines: Sequence[str]) -> str:
    """Return the last line that names an error, else the last line."""
    errors = [line for line in lines if re.search(r"(Error|error): (?!subprocess-exited|metadata-generation)", line)]
    return next(reversed(errors or lines), "it printed nothing")
