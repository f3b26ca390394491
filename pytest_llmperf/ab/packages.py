"""Installed distributions that are built from the repository; each side needs its own build of them."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from configparser import ConfigParser
from configparser import Error as ConfigError
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from packaging.utils import canonicalize_name

from pytest_llmperf.errors import UsageError
from pytest_llmperf.text import printable

_CODE = (".py", ".so", ".pyd")


@dataclass(frozen=True)
class Package:
    """A package of the repository: its distribution's name, empty if unknown, and its folder."""

    name: str
    folder: PurePosixPath


@dataclass(frozen=True)
class RepositoryPackages:
    """Packages of the repository in the user's environment."""

    packages: Sequence[Package]
    links: frozenset[Path]
    """``.pth`` files that lead imports to the repository by code, or to another clone of it."""
    copies: frozenset[str]
    """Modules that installation copied into the environment; submodules are not listed."""


class Locator:
    """Locates paths in the user's repository.

    Args:
        roots: its worktrees.
        sites: folders of installed packages, which never belong to it.
    """

    def __init__(self, roots: Sequence[Path], sites: Sequence[Path]) -> None:
        self._roots = sorted((root.resolve() for root in roots), key=lambda root: len(root.parts), reverse=True)
        self._sites = [folder.resolve() for folder in sites]

    def __call__(self, path: Path) -> PurePosixPath | None:
        """Return a path relative to its worktree; ``None`` if it is in none."""
        found = path.resolve()
        if any(map(found.is_relative_to, self._sites)):
            return None
        root = next(filter(found.is_relative_to, self._roots), None)
        return PurePosixPath(found.relative_to(root).as_posix()) if root else None


def find_packages(locate: Locator, root: Path, here: Path, files: Sequence[str]) -> RepositoryPackages:
    """Return the packages that each side builds: the current project, and those installed from the repository.

    A distribution is installed from the repository if its recorded source is there (PEP 610), if its metadata is there,
    or if it was installed from a local file and has the name of one of the repository's projects.

    Args:
        locate: locates paths in the repository.
        root: the user's worktree.
        here: the working directory.
        files: of the worktree that git tracks.
    """
    named = project_folders(root, files)
    found: dict[PurePosixPath, Package] = {}
    links: set[Path] = set()
    copies: set[str] = set()
    for distribution in distributions():
        name = canonicalize_name(distribution.metadata["Name"] or "")
        folder = _source(distribution, name, locate, named)
        if folder is not None:
            found.setdefault(folder, Package(name, folder))
            links |= {path for path in _links(distribution) if _must_be_left_out(path, locate)}
            copies |= _modules(distribution)
    own = _project_of(root, here, installed=found, names={folder: name for name, folder in named.items()})
    packages = {own.folder: found.get(own.folder, own), **found} if own else found
    return RepositoryPackages([*packages.values()], frozenset(links), frozenset(copies))


def project_folders(root: Path, files: Iterable[str]) -> dict[str, PurePosixPath]:
    """Return the folders of a checkout's projects by the distribution names that their files declare."""
    found: dict[str, PurePosixPath] = {}
    for file in files:
        path = PurePosixPath(file)
        read = _NAME_READERS.get(path.name)
        if read and (name := read(root / file)):
            found.setdefault(canonicalize_name(name), path.parent)
    return found


def read_pyproject(folder: Path) -> dict[str, Any]:
    """Return the content of a folder's ``pyproject.toml``; empty if there is none.

    Raises:
        UsageError: it cannot be read, or is not TOML.
    """
    path = folder / "pyproject.toml"
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (ValueError, OSError) as error:
        raise UsageError(f"pyproject.toml: {printable(str(error))}") from error


def build_backend(folder: Path) -> str | None:
    """Return the build backend of a folder's package; ``None`` if it holds no package.

    Raises:
        UsageError: its ``pyproject.toml`` cannot be read.
    """
    data = read_pyproject(folder)
    system = _table(data, "build-system")
    if "project" in data or system or (folder / "setup.py").exists() or _setup_cfg_name(folder / "setup.cfg"):
        return str(system.get("build-backend", "setuptools"))
    return None


def _table(data: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """Return a nested table; empty if something else is in its place."""
    for name in names:
        found = data.get(name)
        data = found if isinstance(found, dict) else {}
    return data


def _project_of(
    root: Path, here: Path, *, installed: Mapping[PurePosixPath, Package], names: Mapping[PurePosixPath, str]
) -> Package | None:
    """Return the working directory's project; ``None`` if it is declared to be no package, or cannot be built."""
    folder = next((one for one in (here, *here.parents) if one.is_relative_to(root) and build_backend(one)), None)
    if folder is None:
        return None
    inside, data = PurePosixPath(folder.relative_to(root).as_posix()), read_pyproject(folder)
    uv, poetry = _table(data, "tool", "uv"), _table(data, "tool", "poetry")
    is_none = not uv.get("package", True) or not poetry.get("package-mode", True)
    is_told = "build-system" in data or (folder / "setup.py").exists()
    return None if inside not in installed and (is_none or not is_told) else Package(names.get(inside, ""), inside)


def _source(
    distribution: Distribution, name: str, locate: Locator, named: Mapping[str, PurePosixPath]
) -> PurePosixPath | None:
    """Return the repository folder that a distribution was installed from; ``None`` if it is from elsewhere."""
    url = _direct_url(distribution)
    scheme, path = _local_path(url)
    if scheme and (inside := locate(path)) is not None:
        folder = inside / str(url.get("subdirectory", ""))
        return folder if path.is_dir() else named.get(name)
    place = metadata_folder(distribution)
    if place and (inside := locate(place)) is not None:
        return named.get(name, inside.parent)
    return named.get(name) if scheme else None


def metadata_folder(distribution: Distribution) -> Path | None:
    """Return the folder of a distribution's metadata; ``None`` if it is in no folder."""
    place = getattr(distribution, "_path", None)  # importlib.metadata has no public API for it
    return place if isinstance(place, Path) else None


def _direct_url(distribution: Distribution) -> dict[str, Any]:
    try:
        found = json.loads(distribution.read_text("direct_url.json") or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _local_path(direct_url: Mapping[str, Any]) -> tuple[str, Path]:
    """Return scheme and path of a local source; the scheme is empty if it is not local."""
    parts = urlsplit(str(direct_url.get("url", "")))
    return (parts.scheme if parts.scheme in ("file", "git+file") else "", Path(unquote(parts.path)))


def _links(distribution: Distribution) -> list[Path]:
    files = distribution.files or []
    return [Path(str(distribution.locate_file(file))).resolve() for file in files if file.suffix == ".pth"]


def _must_be_left_out(link: Path, locate: Locator) -> bool:
    """Whether a ``.pth`` file cannot be moved into a side's checkout: it has code, or leads to another clone."""
    try:
        lines = [line.strip() for line in link.read_text(encoding="utf-8", errors="replace").splitlines()]
    except OSError:
        return False
    lines = [line for line in lines if line and not line.startswith("#")]
    return any(line.startswith(("import ", "import\t")) or locate(link.parent / line) is None for line in lines)


def _modules(distribution: Distribution) -> set[str]:
    """Return the outermost modules among a distribution's files; of a namespace package, those that it adds.

    An editable install has only its finder, which is left out.
    """
    files = [file for file in distribution.files or () if file.suffix in _CODE and ".." not in file.parts]
    packages = {file.parent for file in files if file.stem == "__init__"}
    names = {".".join(_outermost(file, packages).parts) for file in files}
    return {name for name in names if all(map(str.isidentifier, name.split("."))) and "__editable__" not in name}


def _outermost(file: PurePosixPath, packages: Container[PurePosixPath]) -> PurePosixPath:
    inside = next((parent for parent in reversed(file.parents) if parent in packages), None)
    return inside or file.with_name(file.name.partition(".")[0])


def _pyproject_name(path: Path) -> str:
    try:
        data = read_pyproject(path.parent)
    except UsageError:
        return ""
    tables = [_table(data, "project"), _table(data, "tool", "poetry")]
    return next((str(table["name"]) for table in tables if "name" in table), "")


def _setup_cfg_name(path: Path) -> str:
    parser = ConfigParser(interpolation=None)
    try:
        parser.read(path, encoding="utf-8")
    except (ConfigError, ValueError):
        return ""
    return parser.get("metadata", "name", fallback="")


_NAME_READERS: Mapping[str, Callable[[Path], str]] = {"pyproject.toml": _pyproject_name, "setup.cfg": _setup_cfg_name}
