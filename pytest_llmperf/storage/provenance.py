"""Where a process imported its modules from: the proof that a side of a comparison ran its own revision.

Every process of ``llmperf ab`` reports, when it ends, what it imported of the repository. The command refuses to
compare what a process imported from the user's own checkout, from the other side, or from a copy that both share.
"""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name
from pydantic import BaseModel, ConfigDict, ValidationError

from pytest_llmperf.errors import UsageError

SIDE_VARIABLE = "LLMPERF_SIDE"
"""Names the file that tells a process which side it measures."""

_MAPS = Path("/proc/self/maps")


class SidePlaces(BaseModel):
    """What tells the modules of a side from those of the user's checkout, in the file of `SIDE_VARIABLE`."""

    model_config = ConfigDict(frozen=True)

    repository: list[Path]
    """The user's working trees."""
    own: Path
    """Folder of this side: its checkout, and its environment if it was made for the comparison."""
    comparison: Path
    """Folder of all sides: what lies in it and not in ``own`` is another side's."""
    sites: list[Path]
    """Folders of installed packages that the sides share."""
    copies: list[str]
    """Modules that the shared environment holds a copy of, built from the repository."""
    shares_environment: bool
    """Whether the side's environment lies over the user's; if not, the user has brought it, and vouches for copies."""


class Imported(BaseModel):
    """What a process imported of the repository."""

    model_config = ConfigDict(frozen=True)

    foreign: dict[str, str] = {}
    """Modules and libraries that are not of this side, with their files."""
    packages: dict[str, str] = {}
    """Modules of this side's revision, with their files; of a package none of those inside it."""
    distributions: dict[str, str] = {}
    """Versions of all distributions that it could import, by normalized name."""
    collected: list[str] = []
    """Keys of all perf tests that the process found, also of those that it did not run."""

    @classmethod
    def read(cls, path: Path) -> Imported:
        """What a process has reported.

        Raises:
            UsageError: it has reported nothing that can be read.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise UsageError(
                "its process did not report where it imported the repository's modules from; expected an environment "
                "with the pytest-llmperf that runs this command"
            ) from error


class SideProof(BaseModel):
    """What a verdict file keeps of a side: its commit, and from where it imported the repository's packages."""

    model_config = ConfigDict(frozen=True)

    commit: str
    packages: dict[str, str]


class ImportReporter:
    """Registered in a process that measures a side.

    Args:
        places: of the side.
        path: file for the report.
        collected: keys of the perf tests, which fills up while they are collected.
    """

    def __init__(self, places: SidePlaces, path: Path, collected: AbstractSet[str]) -> None:
        self._path = path
        self._collected = collected
        self._found = _Found(places)

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_teardown(self) -> None:
        """Look now: a test may remove modules before the run ends."""
        self._found.look()

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        """Write the report, also of a run in which tests failed."""
        self._found.look()
        report = Imported(
            foreign=self._found.foreign,
            packages=self._found.packages,
            distributions=_distributions(),
            collected=sorted(self._collected),
        )
        self._path.write_text(report.model_dump_json(indent=1), encoding="utf-8")


def report_path(journal: Path) -> Path:
    """Where the process that writes a journal reports its imports."""
    return journal.with_suffix(".imports.json")


def reporter_of(journal: Path, collected: AbstractSet[str]) -> ImportReporter | None:
    """The reporter of this process; ``None`` if it measures no side of a comparison.

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
    """Folders of installed packages that this process sees, in the order in which it searches them."""
    names = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()]
    if site.ENABLE_USER_SITE:
        names.append(site.getusersitepackages())
    searched = {path: number for number, path in enumerate(sys.path)}
    return [Path(name) for name in sorted(dict.fromkeys(names), key=lambda name: searched.get(name, len(searched)))]


class _Found:
    """What has been found so far, each module and library looked at once."""

    def __init__(self, places: SidePlaces) -> None:
        self._places = places
        standard = [Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")]
        self._sites = [path.resolve() for path in (*places.sites, *site_folders(), *standard)]
        # An environment in the working tree has an interpreter and libraries of its own.
        prefixes = {Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()}
        self._prefixes = [path for path in prefixes if not any(map(_below(path), places.repository))]
        self._seen: set[tuple[str, str]] = set()
        self.foreign: dict[str, str] = {}
        self.packages: dict[str, str] = {}

    def look(self) -> None:
        """Take in what has been imported since the last look."""
        for name, file in (*_imported_files(), *self._mapped_libraries()):
            if (name, file) not in self._seen:
                self._seen.add((name, file))
                self._take(name, file)

    def _take(self, name: str, file: str) -> None:
        path = Path(os.path.realpath(file))
        copy = next((one for one in self._places.copies if f"{name}.".startswith(f"{one}.")), "")
        is_own = path.is_relative_to(self._places.own)
        if self._is_foreign(path) or (copy and self._places.shares_environment and not is_own):
            self.foreign.setdefault(name, file)
        elif name == copy or (is_own and "." not in name and not name.startswith("_llmperf")):
            self.packages.setdefault(name, str(path))

    def _is_foreign(self, path: Path) -> bool:
        if path.is_relative_to(self._places.own) or any(map(path.is_relative_to, self._sites)):
            return False
        return any(map(path.is_relative_to, (*self._places.repository, self._places.comparison)))

    def _mapped_libraries(self) -> Iterator[tuple[str, str]]:
        """Native code of this process, however it was loaded; only Linux tells."""
        lines = _MAPS.read_text(encoding="utf-8", errors="surrogateescape").splitlines() if _MAPS.exists() else []
        for path in dict.fromkeys(path for line in lines if (path := _executable(line))):
            if not any(map(Path(path).is_relative_to, self._prefixes)):
                yield Path(path).name, path


def _distributions() -> dict[str, str]:
    # An installation that was interrupted leaves some without name or version.
    found = [(canonicalize_name(one.metadata["Name"] or ""), one.version or "") for one in distributions()]
    return dict(reversed(found))  # the first of a name is what is imported


def _below(folder: Path) -> Callable[[Path], bool]:
    return lambda path: path.is_relative_to(folder)


def _executable(line: str) -> str:
    """The file that a line of ``/proc/self/maps`` maps as code; empty if it maps none."""
    words = line.split(maxsplit=5)
    is_code = len(words) == 6 and "x" in words[1] and words[5].startswith("/")  # noqa: PLR2004  # fields of a line
    return words[5].removesuffix(" (deleted)") if is_code else ""


def _imported_files() -> Iterator[tuple[str, str]]:
    """Each module with its file; of a namespace package, each of its folders. Nothing of a module is asked to load."""
    for name, module in list(sys.modules.items()):
        attributes = getattr(module, "__dict__", {})
        file = attributes.get("__file__")
        if isinstance(file, str):
            yield name, file
        elif (places := attributes.get("__path__")) is not None:
            yield from ((name, place) for place in list(places) if isinstance(place, str))
