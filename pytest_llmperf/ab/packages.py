"""Which installed distributions are built from the repository: each side needs its own of them."""

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
    """A package of the repository: its distribution's name, empty where that is not known, and its folder."""

    name: str
    folder: PurePosixPath


@dataclass(frozen=True)
class RepositoryPackages:
    """What the user's environment holds of the repository."""

    packages: Sequence[Package]
    links: frozenset[Path]
    """``.pth`` files that lead an import to the repository by code, or to another clone of it."""
    copies: frozenset[str]
    """Modules that were copied into the environment when they were installed, each without those inside it."""


class Locator:
    """Where paths lie in the user's repository.

    Args:
        roots: its working trees.
        sites: folders of installed packages, which are no part of it wherever they lie.
    """

    def __init__(self, roots: Sequence[Path], sites: Sequence[Path]) -> None:
        self._roots = sorted((root.resolve() for root in roots), key=lambda root: len(root.parts), reverse=True)
        self._sites = [folder.resolve() for folder in sites]

    def __call__(self, path: Path) -> PurePosixPath | None:
        """A path relative to its working tree; ``None`` if it lies in none."""
        found = path.resolve()
        if any(map(found.is_relative_to, self._sites)):
            return None
        root = next(filter(found.is_relative_to, self._roots), None)
        return PurePosixPath(found.relative_to(root).as_posix()) if root else None


def find_packages(locate: Locator, root: Path, here: Path, files: Sequence[str]) -> RepositoryPackages:
    """The packages that each side builds: the working directory's project, and what is installed from the repository.

    A distribution is installed from the repository if its source is recorded to lie there (PEP 610), if its metadata
    lies there, or if it was installed from a local file and has the name of one of the repository's projects.

    Args:
        locate: tells which paths lie in the repository.
        root: the user's working tree.
        here: the working directory.
        files: of the working tree, as git tracks them.
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
    """The folders of a checkout's projects by the names of their distributions, as far as files say them."""
    found: dict[str, PurePosixPath] = {}
    for file in files:
        path = PurePosixPath(file)
        read = _NAME_READERS.get(path.name)
        if read and (name := read(root / file)):
            found.setdefault(canonicalize_name(name), path.parent)
    return found


def read_pyproject(folder: Path) -> dict[str, Any]:
    """What a folder's ``pyproject.toml`` says; nothing if there is none.

    Raises:
        UsageError: it is no TOML.
    """
    path = folder / "pyproject.toml"
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (ValueError, OSError) as error:
        raise UsageError(f"pyproject.toml: {printable(str(error))}") from error


def build_backend(folder: Path) -> str | None:
    """The module that builds a folder's package; ``None`` if it holds no package.

    Raises:
        UsageError: its ``pyproject.toml`` cannot be read.
    """
    data = read_pyproject(folder)
    system = _table(data, "build-system")
    if "project" in data or system or (folder / "setup.py").exists() or _setup_cfg_name(folder / "setup.cfg"):
        return str(system.get("build-backend", "setuptools"))
    return None


def _table(data: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """A table inside others; empty where something else stands in its place."""
    for name in names:
        found = data.get(name)
        data = found if isinstance(found, dict) else {}
    return data


def _project_of(
    root: Path, here: Path, *, installed: Mapping[PurePosixPath, Package], names: Mapping[PurePosixPath, str]
) -> Package | None:
    """The project of the working directory, unless it says that it is no package, or nothing says how to build it."""
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
    """The folder in the repository that a distribution was installed from; ``None`` if it comes from elsewhere."""
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
    """Where a distribution's metadata lies; ``None`` if it is in no folder."""
    place = getattr(distribution, "_path", None)  # importlib.metadata has no public way to ask
    return place if isinstance(place, Path) else None


def _direct_url(distribution: Distribution) -> dict[str, Any]:
    try:
        found = json.loads(distribution.read_text("direct_url.json") or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _local_path(direct_url: Mapping[str, Any]) -> tuple[str, Path]:
    """Scheme and path of a local source; an empty scheme if it is not local."""
    parts = urlsplit(str(direct_url.get("url", "")))
    return (parts.scheme if parts.scheme in ("file", "git+file") else "", Path(unquote(parts.path)))


def _links(distribution: Distribution) -> list[Path]:
    files = distribution.files or []
    return [Path(str(distribution.locate_file(file))).resolve() for file in files if file.suffix == ".pth"]


def _must_be_left_out(link: Path, locate: Locator) -> bool:
    """Paths into the repository are moved into a side's checkout; what is code, or leads to another clone, is not."""
    try:
        lines = [line.strip() for line in link.read_text(encoding="utf-8", errors="replace").splitlines()]
    except OSError:
        return False
    lines = [line for line in lines if line and not line.startswith("#")]
    return any(line.startswith(("import ", "import\t")) or locate(link.parent / line) is None for line in lines)


def _modules(distribution: Distribution) -> set[str]:
    """The outermost modules among a distribution's files; of a namespace package, those that it adds.

    An editable install has none but its finder.
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
