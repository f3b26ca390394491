"""Report which files a process imported, to prove that each side of a comparison ran its own revision.

Every process of ``llmperf ab`` reports at its end what it imported from the repository. The command refuses to compare
if a process imported from the user's own checkout, from the other side, or from a copy that both sides share.
"""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name
from pydantic import BaseModel, ConfigDict, ValidationError

from pytest_llmperf.errors import UsageError

SIDE_VARIABLE = "LLMPERF_SIDE"
"""Environment variable with the path of the file that describes the side to measure."""

_MAPS = Path("/proc/self/maps")


class SidePlaces(BaseModel):
    """Paths that tell a side's modules from those of the user's checkout; content of the `SIDE_VARIABLE` file."""

    model_config = ConfigDict(frozen=True)

    repository: list[Path]
    """The user's working trees."""
    own: Path
    """Folder of this side: its checkout, and its environment if one was made for the comparison."""
    comparison: Path
    """Folder of all sides; files in it but not in ``own`` belong to another side."""
    sites: list[Path]
    """Folders of installed packages that the sides share."""
    copies: list[str]
    """Modules built from the repository that are installed in the shared environment."""
    shares_environment: bool
    """Whether the side's environment overlays the user's; if not, the user supplied it and vouches for its copies."""


class Imported(BaseModel):
    """Modules of the repository that a process imported."""

    model_config = ConfigDict(frozen=True)

    foreign: dict[str, str] = {}
    """Modules and libraries that do not belong to this side, with their files."""
    packages: dict[str, str] = {}
    """Top-level modules of this side's revision, with their files; submodules are omitted."""
    distributions: dict[str, str] = {}
    """Versions of all importable distributions, by normalized name."""
    collected: list[str] = []
    """Keys of all collected perf tests, including those that did not run."""

    @classmethod
    def read(cls, path: Path) -> Imported:
        """Read a process's report.

        Raises:
            UsageError: there is no readable report.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise UsageError(
                "its process wrote no report of its imports; expected an environment with the pytest-llmperf that runs "
                "this command"
            ) from error


class SideProof(BaseModel):
    """What a side ran: its commit, and the files of the repository's packages; kept in the verdict file."""

    model_config = ConfigDict(frozen=True)

    commit: str
    packages: dict[str, str]
    requirements: list[str] = []
    """Requirements (PEP 508) that the user asked for on this side; with the SHA-256 of a file."""


class ImportReporter:
    """Pytest plugin that reports the imports of a process that measures a side.

    Args:
        places: paths of the side.
        path: file for the report.
        collected: keys of the perf tests; filled during collection.
    """

    def __init__(self, places: SidePlaces, path: Path, collected: AbstractSet[str]) -> None:
        self._path = path
        self._collected = collected
        self._found = _Found(places)

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_teardown(self) -> None:
        """Record imports after each test, since a test may remove modules before the run ends."""
        self._found.look()

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        """Write the report, also if tests failed."""
        self._found.look()
        report = Imported(
            foreign=self._found.foreign,
            packages=self._found.packages,
            distributions=_distributions(),
            collected=sorted(self._collected),
        )
        self._path.write_text(report.model_dump_json(indent=1), encoding="utf-8")


def report_path(journal: Path) -> Path:
    """Return the path of the import report of the process that writes a journal."""
    return journal.with_suffix(".imports.json")


def reporter_of(journal: Path, collected: AbstractSet[str]) -> ImportReporter | None:
    """Return this process's reporter; ``None`` if it does not measure a side.

    Raises:
        UsageError: the file of `SIDE_VARIABLE` cannot be read.
    """
    path = os.environ.get(SIDE_VARIABLE)
    if not path:
        return None
    try:
        places = SidePlaces.model_validate_json(Path(path).read_bytes())
    except (OSError, ValidationError) as error:
        raise UsageError(f"{SIDE_VARIABLE}={path}: expected a file that llmperf ab wrote") from error
    return ImportReporter(places, report_path(journal), collected)


def site_folders() -> list[Path]:
    """Return the folders of installed packages of this process, in search order."""
    names = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()]
    if site.ENABLE_USER_SITE:
        names.append(site.getusersitepackages())
    searched = {path: number for number, path in enumerate(sys.path)}
    return [Path(name) for name in sorted(dict.fromkeys(names), key=lambda name: searched.get(name, len(searched)))]


class _Found:
    """Imports found so far; each module and library is inspected once.

    A process imports thousands of modules, so paths are compared as strings.
    """

    def __init__(self, places: SidePlaces) -> None:
        self._places = places
        standard = [Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")]
        self._sites = _beginnings(path.resolve() for path in (*places.sites, *site_folders(), *standard))
        self._own = _beginnings([places.own])
        self._others = _beginnings([*places.repository, places.comparison])
        # An environment in the working tree has its own interpreter and libraries.
        prefixes = {Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()}
        self._prefixes = _beginnings(
            path for path in prefixes if not any(one.is_relative_to(path) for one in places.repository)
        )
        self._seen: set[tuple[str, str]] = set()
        self.foreign: dict[str, str] = {}
        self.packages: dict[str, str] = {}

    def look(self) -> None:
        """Add the modules imported since the last call."""
        for name, file in (*_imported_files(), *self._mapped_libraries()):
            if (name, file) not in self._seen:
                self._seen.add((name, file))
                self._take(name, file)

    def _take(self, name: str, file: str) -> None:
        path = os.path.realpath(file)
        copy = next((one for one in self._places.copies if f"{name}.".startswith(f"{one}.")), "")
        is_own = _is_in(path, self._own)
        if (not is_own and self._is_foreign(path)) or (copy and self._places.shares_environment and not is_own):
            self.foreign.setdefault(name, file)
        elif name == copy or (is_own and "." not in name and not name.startswith("_llmperf")):
            self.packages.setdefault(name, path)

    def _is_foreign(self, path: str) -> bool:
        return not _is_in(path, self._sites) and _is_in(path, self._others)

    def _mapped_libraries(self) -> Iterator[tuple[str, str]]:
        """Yield native libraries mapped by this process, however they were loaded; Linux only."""
        lines = _MAPS.read_text(encoding="utf-8", errors="surrogateescape").splitlines() if _MAPS.exists() else []
        for path in dict.fromkeys(path for line in lines if (path := _executable(line))):
            if not _is_in(path, self._prefixes):
                yield Path(path).name, path


def _beginnings(folders: Iterable[Path]) -> tuple[str, ...]:
    """Return how the paths in these folders begin."""
    return tuple(str(folder).removesuffix(os.sep) + os.sep for folder in folders)


def _is_in(path: str, beginnings: tuple[str, ...]) -> bool:
    """Whether a path is one of some folders, or in it."""
    return f"{path}{os.sep}".startswith(beginnings)


def _distributions() -> dict[str, str]:
    # An interrupted installation leaves distributions without name or version.
    fields = [one.metadata for one in distributions()]  # parsed once: one.version would do it again
    found = [(canonicalize_name(one["Name"] or ""), one["Version"] or "") for one in fields]
    return dict(reversed(found))  # the first distribution of a name is the one imported


def _executable(line: str) -> str:
    """Return the file that a line of ``/proc/self/maps`` maps as code; empty if there is none."""
    words = line.split(maxsplit=5)
    is_code = len(words) == 6 and "x" in words[1] and words[5].startswith("/")  # noqa: PLR2004  # fields of a line
    return words[5].removesuffix(" (deleted)") if is_code else ""


def _imported_files() -> Iterator[tuple[str, str]]:
    """Yield each module with its file, and each folder of a namespace package, without triggering lazy loading."""
    for name, module in list(sys.modules.items()):
        attributes = getattr(module, "__dict__", {})
        file = attributes.get("__file__")
        if isinstance(file, str):
            yield name, file
        elif (places := attributes.get("__path__")) is not None:
            yield from ((name, place) for place in list(places) if isinstance(place, str))
