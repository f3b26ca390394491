"""Versions of a package that pip's indexes list for this interpreter and system."""

from __future__ import annotations

import subprocess
import sys
from bisect import bisect_left
from collections.abc import Sequence

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version

from pytest_llmperf.ab.overlay import has_pip
from pytest_llmperf.errors import UsageError
from pytest_llmperf.text import printable

_NEAREST = 2
"""Listed versions that are shown on each side of one that is not listed."""
_LIST = "Available versions: "


def package_versions(name: str, *, prereleases: bool = False) -> list[Version]:
    """Return the versions that ``pip index versions`` lists, oldest first.

    These come from the indexes and folders that pip is configured with, and can be installed here, as wheel or from
    source. Yanked releases are left out.

    Args:
        name: of the package.
        prereleases: whether to list pre-releases too.

    Raises:
        UsageError: the name is invalid, pip is not installed, or it lists no version.
    """
    _refuse_no_name(name)
    if not has_pip():
        raise UsageError(f"{name}: its versions are listed by pip, which this environment lacks: install pip")
    command = [sys.executable, "-m", "pip", "index", "versions", *(["--pre"] if prereleases else []), name]
    done = subprocess.run(command, cwd=sys.prefix, capture_output=True, encoding="utf-8", errors="replace",
                          stdin=subprocess.DEVNULL, check=False)  # fmt: skip
    line = next((line for line in done.stdout.splitlines() if line.startswith(_LIST)), "")
    if not line:
        raise UsageError(f"{name}: pip lists no version: {_reason(done.stderr)}")
    return sorted(map(Version, line.removeprefix(_LIST).split(", ")))


def versions_between(name: str, first: str, last: str) -> list[Version]:
    """Return the final releases from ``first`` to ``last``, both included; these two may be pre-releases.

    Raises:
        UsageError: one of them is not listed, or ``first`` is not older than ``last``.
    """
    listed = package_versions(name, prereleases=True)
    ends = [_listed(name, text, listed) for text in (first, last)]
    if ends[0] >= ends[1]:
        raise UsageError(f"{name}: expected two versions, the older one first, not {first} and {last}")
    return [one for one in listed if ends[0] <= one <= ends[1] and (one in ends or not one.is_prerelease)]


def nearest(version: Version, listed: Sequence[Version]) -> list[Version]:
    """Return the listed versions next to one that is not listed.

    Args:
        version: the one that is not listed.
        listed: oldest first.
    """
    at = bisect_left(listed, version)
    return [*listed[max(0, at - _NEAREST) : at + _NEAREST]]


def unlisted(requirement: Requirement) -> str:
    """Return why no listed version satisfies a requirement; empty if one does, or if it is not known."""
    if requirement.url:
        return ""
    try:
        listed = package_versions(requirement.name, prereleases=True)
    except UsageError as error:
        return str(error)
    if any(requirement.specifier.contains(one, prereleases=True) for one in listed):
        return ""
    bound = next((_version(one.version) for one in requirement.specifier), None)
    return f"pip lists no such version; {_shown(nearest(bound or listed[-1], listed))}"


def _listed(name: str, text: str, listed: Sequence[Version]) -> Version:
    version = _version(text)
    if version is None:
        raise UsageError(printable(f"{name}: {text!r} is no version; expected one such as {listed[-1]}"))
    if version not in listed:
        raise UsageError(f"{name}: pip lists no version {version}; {_shown(nearest(version, listed))}")
    return version


def _version(text: str) -> Version | None:
    try:
        return Version(text.removesuffix(".*"))
    except InvalidVersion:
        return None


def _shown(versions: Sequence[Version]) -> str:
    return f"the nearest are {', '.join(map(str, versions))}"


def _refuse_no_name(name: str) -> None:
    try:
        is_name = Requirement(name).name == name
    except InvalidRequirement:
        is_name = False
    if not is_name:
        raise UsageError(printable(f"{name!r} is no name of a package"))


def _reason(stderr: str) -> str:
    lines = [line for line in stderr.splitlines() if line.startswith("ERROR: ")]
    return printable(lines[-1].removeprefix("ERROR: ")) if lines else "it printed no list"
