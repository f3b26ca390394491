"""Dependencies that two revisions declare in files, and where they differ.

A side must not silently run with the other side's dependencies: differences are installed for each side, or rejected.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from configparser import ConfigParser
from configparser import Error as ConfigError
from dataclasses import dataclass, field
from enum import Enum, auto
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion

from pytest_llmperf.errors import UsageError
from pytest_llmperf.text import printable

_REQUIREMENT_FILES = ("*requirements*.txt", "*requirements*.in", "*constraints*.txt")
_REQUIREMENT_FOLDERS = ("requirements", "reqs", "constraints")
_INNER_FOLDERS = (
    *(*_REQUIREMENT_FOLDERS, "dependencies", "deps", "ci", ".ci", "docker", "conda", "envs"),
    *("test", "tests", "perf", "benchmark", "benchmarks"),
)
"""Inner folders that are searched. Files in any other folder may belong to another project."""
_CONDA_FILES = ("environment*.yml", "environment*.yaml", "conda*.yml", "conda*.yaml", "conda-lock.*", "pixi.lock",
                "pixi.toml")  # fmt: skip
_INDEX_OPTIONS = ("--index-url", "-i", "--extra-index-url", "--find-links", "-f", "--pre", "--no-index",
                  "--trusted-host", "--prefer-binary")  # fmt: skip


class Need(Enum):
    """When to install a dependency that an environment lacks."""

    ALWAYS = auto()
    """The code does not run without it."""
    IF_NEW = auto()
    """If the other revision does not declare it. If both do and the user has not installed it, it is not used."""
    NEVER = auto()
    """It is from an extra, a group, a lock or a constraint: its version matters only if it is installed."""


@dataclass(frozen=True)
class Wish:
    """One declared dependency; of several texts, any satisfies it."""

    name: str
    texts: tuple[str, ...]
    file: str
    need: Need

    @property
    def requirements(self) -> list[Requirement]:
        """The texts that are requirements (PEP 508), for this interpreter and system."""
        found = [parsed for text in self.texts if (parsed := _parsed(text))]
        return [one for one in found if one.marker is None or one.marker.evaluate({"extra": ""})]


@dataclass(frozen=True)
class Installed:
    """A distribution of an environment; ``source`` is its origin, if that is not an index."""

    version: str
    source: str = ""


@dataclass(frozen=True)
class Dependencies:
    """Dependencies that the files of one revision declare."""

    wishes: Sequence[Wish] = ()
    options: Sequence[str] = ()
    """Lines of requirement files with index options."""
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """Text, without comments, of files from which neither ``pip`` nor ``uv`` can install."""

    @property
    def by_text(self) -> dict[tuple[str, tuple[str, ...]], Wish]:
        """Wishes by name and texts, whichever file declares them."""
        return {(wish.name, wish.texts): wish for wish in self.wishes}


@dataclass(frozen=True)
class Differing:
    """Dependencies of one revision that differ from another one's."""

    wishes: Sequence[Wish] = ()
    options: Sequence[str] = ()
    unreadable: Sequence[str] = ()
    only_here: frozenset[str] = frozenset()
    """Names that the other revision does not declare anywhere."""

    @property
    def files(self) -> list[str]:
        """Files that contain the differences."""
        return list(dict.fromkeys([*(wish.file for wish in self.wishes), *self.unreadable]))

    def unmet(self, installed: Mapping[str, Installed]) -> list[Wish]:
        """Return the wishes that an environment does not satisfy, although the code may need them."""
        return [wish for wish in self.wishes if self._is_unmet(wish, installed)]

    def _is_unmet(self, wish: Wish, installed: Mapping[str, Installed]) -> bool:
        there = installed.get(wish.name)
        if there is None:
            is_wanted = wish.need is Need.ALWAYS or (wish.need is Need.IF_NEW and wish.name in self.only_here)
            return is_wanted and bool(wish.requirements)
        if not any(map(_parsed, wish.texts)):  # a constraint that only its own tool understands
            return True
        return bool(wish.requirements) and not any(holds(requirement, there) for requirement in wish.requirements)


def dependencies_of(checkout: Path, files: Sequence[str], folders: Sequence[PurePosixPath]) -> Dependencies:
    """Return the dependencies that a revision declares.

    Args:
        checkout: of the revision.
        files: of the checkout that git tracks.
        folders: searched for dependency files, with some folders right below each.

    Raises:
        UsageError: a file cannot be read.
    """
    wishes: list[Wish] = []
    options: list[str] = []
    unreadable: dict[str, str] = {}
    for file in files:
        path = PurePosixPath(file)
        is_inner = path.parent.name in _INNER_FOLDERS and path.parent.parent in folders
        if path.parent not in folders and not is_inner:
            continue
        if any(fnmatch(path.name, pattern) for pattern in _CONDA_FILES):
            unreadable[file] = _without_comments((checkout / file).read_text(encoding="utf-8", errors="replace"))
        elif reader := _reader(path):
            wishes += _read(reader, checkout, file)
        if _is_requirement_file(path):
            options += _index_options(checkout / file)
    return Dependencies(wishes, list(dict.fromkeys(options)), unreadable)


def differences(mine: Dependencies, theirs: Dependencies) -> Differing:
    """Return the dependencies that one revision declares differently from another one."""
    here, there = mine.by_text, theirs.by_text
    files = {*mine.unreadable, *theirs.unreadable}
    return Differing(
        wishes=[wish for key, wish in here.items() if key not in there],
        options=mine.options,
        unreadable=sorted(file for file in files if mine.unreadable.get(file) != theirs.unreadable.get(file)),
        only_here=frozenset({wish.name for wish in mine.wishes} - {wish.name for wish in theirs.wishes}),
    )


def metadata_wishes(name: str, requires: Sequence[str]) -> list[Wish]:
    """Return a built distribution's requirements (PEP 508); those of extras matter only if installed."""
    parts = [text.partition(";") for text in requires]
    found = [
        _wish(wanted, f"{name}'s metadata", need=Need.NEVER)
        if "extra" in marker
        else _wish(f"{wanted};{marker}" if marker else wanted, f"{name}'s metadata", need=Need.ALWAYS)
        for wanted, _, marker in parts
    ]
    return [wish for wish in found if wish]


def holds(requirement: Requirement, installed: Installed) -> bool:
    """Whether an installed distribution satisfies a requirement, without its marker."""
    if requirement.url:
        return _same_source(requirement.url, installed.source)
    try:
        return requirement.specifier.contains(installed.version, prereleases=True)
    except InvalidVersion:
        return False


_Reader = Callable[[Path, str], Iterator[Wish | None]]
"""Reads the wishes of a file, given its path and its name in the checkout."""


def _read(reader: _Reader, checkout: Path, file: str) -> list[Wish]:
    try:
        found = list(reader(checkout / file, file))
    except (ValueError, TypeError, AttributeError, KeyError, OSError, ConfigError) as error:
        raise UsageError(f"{file}: cannot read its dependencies: {printable(str(error))}") from error
    return [wish for wish in found if wish]


def _reader(path: PurePosixPath) -> _Reader | None:
    return _from_requirements if _is_requirement_file(path) else _READERS.get(path.name)


def _is_requirement_file(path: PurePosixPath) -> bool:
    in_folder = path.parent.name in _REQUIREMENT_FOLDERS and path.suffix in (".txt", ".in")
    return in_folder or any(fnmatch(path.name, pattern) for pattern in _REQUIREMENT_FILES)


def _parsed(text: str) -> Requirement | None:
    try:
        return Requirement(text)
    except InvalidRequirement:
        return None


def _wish(text: str, file: str, *, need: Need) -> Wish | None:
    """Return a wish for one requirement; ``None`` if the text is none, such as a path into the repository."""
    parsed = _parsed(text)
    return Wish(canonicalize_name(parsed.name), (text.strip(),), file, need) if parsed else None


def _same_source(wanted: str, found: str) -> bool:
    """Whether sources are equal. ``found`` is ``URL@COMMIT`` for a repository; branches and short commits differ."""
    return bool(found) and wanted.partition("#")[0].removeprefix("git+") == found.partition("#")[0].removeprefix("git+")


def _logical_lines(text: str) -> Iterator[str]:
    for line in re.sub(r"\\\r?\n", " ", text).splitlines():
        if found := re.sub(r"(^|\s)#.*$", "", line).strip():
            yield found


def _without_comments(text: str) -> str:
    return "\n".join(_logical_lines(text))


def _from_requirements(path: Path, file: str) -> Iterator[Wish | None]:
    need = Need.ALWAYS if path.name == "requirements.txt" else Need.NEVER if "constraint" in file else Need.IF_NEW
    for line in _logical_lines(path.read_text(encoding="utf-8")):
        if not line.startswith("-"):
            requirement = re.split(r"\s--?(?:hash|config-settings|global-option|C)\b", line)[0]
            yield _wish(_with_name(requirement, path.parent), file, need=need)


def _with_name(requirement: str, folder: Path) -> str:
    """Return a bare address as ``NAME @ ADDRESS``; pip's name is from ``egg=``, a wheel's name, or the address."""
    address = requirement.split(";", maxsplit=1)[0].strip()
    if "://" not in address:
        if not address.endswith(".whl"):
            return requirement
        address = (folder / address).resolve().as_uri()
    elif " @ " in address:
        return requirement
    url, _, fragment = address.partition("#")
    egg = re.search(r"egg=([\w.-]+)", fragment)
    last = url.rstrip("/").rpartition("/")[2]
    return f"{egg[1] if egg else _name_of(last)} @ {url}"


def _name_of(file: str) -> str:
    try:
        return parse_wheel_filename(file)[0]
    except InvalidWheelFilename:
        return file.partition("@")[0].removesuffix(".git")


def _index_options(path: Path) -> list[str]:
    """Return the index options of a file; a folder relative to the file is made absolute."""
    found = []
    for line in _logical_lines(path.read_text(encoding="utf-8", errors="replace")):
        name, _, value = line.replace("=", " ", 1).partition(" ")
        if name in _INDEX_OPTIONS:
            folder = path.parent / value.strip()
            found.append(f"{name} {folder if name in ('--find-links', '-f') and folder.is_dir() else value}".strip())
    return found


def _from_pyproject(path: Path, file: str) -> Iterator[Wish | None]:
    data = _toml(path)
    project, tool = data.get("project", {}), data.get("tool", {})
    for requirement in project.get("dependencies", ()):
        yield _wish(requirement, file, need=Need.ALWAYS)
    groups = [
        *project.get("optional-dependencies", {}).values(),
        *data.get("dependency-groups", {}).values(),
        *tool.get("pdm", {}).get("dev-dependencies", {}).values(),
        tool.get("uv", {}).get("dev-dependencies", ()),
    ]
    for requirement in (one for group in groups for one in group if isinstance(one, str)):
        yield _wish(requirement, file, need=Need.NEVER)
    yield from _from_poetry(tool.get("poetry", {}), file)


def _from_poetry(poetry: Mapping[str, Any], file: str) -> Iterator[Wish | None]:
    """Yield wishes of Poetry's own tables, which allow ``^`` and ``~`` beside the usual specifiers."""
    groups = [table.get("dependencies", {}) for table in poetry.get("group", {}).values()]
    groups.append(poetry.get("dev-dependencies", {}))
    for table, need in [(poetry.get("dependencies", {}), Need.ALWAYS), *((table, Need.NEVER) for table in groups)]:
        for name, given in table.items():
            version = given if isinstance(given, str) else given.get("version") if isinstance(given, dict) else None
            optional = isinstance(given, dict) and given.get("optional", False)
            if name != "python" and isinstance(version, str):
                text = f"{name}{_specifier(version)}"
                yield Wish(canonicalize_name(name), (text,), file, Need.NEVER if optional else need)


def _specifier(version: str) -> str:
    """Convert Poetry's constraint to PEP 440; other text is passed on, and is not a valid requirement."""
    return ",".join(part for one in version.split(",") for part in _specifier_parts(one.strip()))


def _specifier_parts(text: str) -> list[str]:
    if text in ("*", ""):
        return []
    if text[0] not in "^~" or text.startswith("~="):
        return [text if text[0] in "<>=!~" else f"=={text}"]
    numbers = [int(part) for part in text[1:].split(".") if part.isdigit()]
    kept = next((n for n, number in enumerate(numbers) if number), len(numbers) - 1) if text[0] == "^" else 1
    kept = min(kept, len(numbers) - 1)
    return [f">={text[1:]}", f"<{'.'.join(map(str, [*numbers[:kept], numbers[kept] + 1]))}"]


def _from_setup_cfg(path: Path, file: str) -> Iterator[Wish | None]:
    parser = ConfigParser(interpolation=None)
    parser.read(path, encoding="utf-8")
    for line in parser.get("options", "install_requires", fallback="").splitlines():
        yield _wish(line, file, need=Need.ALWAYS)
    extras = parser["options.extras_require"].values() if "options.extras_require" in parser else ()
    for line in (line for extra in extras for line in extra.splitlines()):
        yield _wish(line, file, need=Need.NEVER)


def _toml(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def _from_lock(path: Path, file: str) -> Iterator[Wish | None]:
    """Yield wishes of ``uv.lock``, ``poetry.lock``, ``pdm.lock`` or ``pylock.toml``, which have a table per package.

    Several packages of one name are alternatives.
    """
    data = _toml(path)
    texts: defaultdict[str, list[str]] = defaultdict(list)
    for package in (*data.get("package", ()), *data.get("packages", ())):
        name = canonicalize_name(package["name"])
        if locked := _locked(name, package):
            texts[name].append(locked)
    for wanted, found in texts.items():
        yield Wish(wanted, tuple(dict.fromkeys(found)), file, need=Need.NEVER)


def _locked(name: str, package: Mapping[str, Any]) -> str:
    """Return a locked package as a requirement; empty for the project itself and packages in its folders."""
    source = package.get("source", {})
    if git := source.get("git") or package.get("git") or (source.get("type") == "git" and source.get("url")):
        url, _, commit = str(git).partition("#")
        commit = commit or source.get("resolved_reference") or package.get("revision") or "HEAD"
        return f"{name} @ git+{url.partition('?')[0]}@{commit}"
    is_local = {"editable", "virtual", "directory", "path"} & {*source, *package}
    if is_local or source.get("type") in ("directory", "file") or "version" not in package:
        return ""
    return f"{name}=={package['version']}"


def _from_pipfile_lock(path: Path, file: str) -> Iterator[Wish | None]:
    data = json.loads(path.read_text(encoding="utf-8"))
    for group in ("default", "develop"):
        for name, package in data.get(group, {}).items():
            yield _wish(f"{name}{package.get('version', '')}", file, need=Need.NEVER)


_READERS: Mapping[str, _Reader] = {
    "pyproject.toml": _from_pyproject,
    "setup.cfg": _from_setup_cfg,
    "uv.lock": _from_lock,
    "poetry.lock": _from_lock,
    "pdm.lock": _from_lock,
    "pylock.toml": _from_lock,
    "Pipfile.lock": _from_pipfile_lock,
}
