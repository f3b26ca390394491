"""Requirements that the user asks for on one side of a comparison, and what of them an environment lacks."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from pytest_llmperf.ab.dependencies import Installed, holds
from pytest_llmperf.ab.installed import Environment
from pytest_llmperf.errors import UsageError
from pytest_llmperf.text import printable

OWN_NAME = "pytest-llmperf"

_FIXED_COMMIT = re.compile(r"git\+[a-z]+://.+@[0-9a-f]{40}(#.*)?$")


@dataclass(frozen=True)
class Missing:
    """A requirement that an environment does not satisfy."""

    requirement: Requirement
    by: str
    """Name and version of the distribution that requires it; empty if the user asks for it."""
    found: str
    """Installed version; empty if there is none, or if it is not from the required file or commit."""

    def __str__(self) -> str:
        text = shown(str(self.requirement))
        return printable(f"{text}, which {self.by} requires" if self.by else text)


def parse_requested(texts: Sequence[str], *, option: str) -> tuple[str, ...]:
    """Validate requirements (PEP 508), and return them in one normal form.

    A URL must name what cannot change: a file, whose SHA-256 is added, or a git commit. A comparison is identified by
    its requirements, so that blocks of another build of the same file are not reused.

    Args:
        texts: one requirement each.
        option: their command-line option, for messages.

    Raises:
        UsageError: a requirement is invalid, does not apply to this system, or contradicts another one.
    """
    found: dict[str, str] = {}
    for text in texts:
        requirement = _parse(text, option)
        name = canonicalize_name(requirement.name)
        if name in found:
            raise UsageError(f"{option}: {name} is named twice; write one requirement: '{name}>=1,<2'")
        found[name] = str(requirement)
    return tuple(sorted(found.values()))


def refuse_own_packages(requirements: Iterable[str], names: Collection[str], *, side: str) -> None:
    """Reject requirements for packages of the repository, which each side builds from its checkout.

    Args:
        requirements: from `parse_requested`.
        names: normalized names of the repository's packages.
        side: the name of the side, for messages.

    Raises:
        UsageError: one names such a package.
    """
    for requirement in map(Requirement, requirements):
        if canonicalize_name(requirement.name) in names:
            raise UsageError(
                f"{side} cannot run with {shown(str(requirement))}: {requirement.name} is a package of this "
                "repository, which each side builds from its checkout; compare its revisions: llmperf ab BASE HEAD"
            )


def shown(requirement: str) -> str:
    """Return a requirement for messages, without the digest of its file."""
    return requirement.partition("#sha256=")[0]


class Requested:
    """Requirements of one side.

    Args:
        requirements: from `parse_requested`.
    """

    def __init__(self, requirements: Sequence[str]) -> None:
        self._requirements = [Requirement(text) for text in requirements]
        self.names = frozenset(canonicalize_name(requirement.name) for requirement in self._requirements)

    def missing(self, environment: Environment) -> list[Missing]:
        """Return the requirements that an environment lacks, and those of the distributions installed for them.

        Distributions of the user's environment are not asked for theirs: what is installed there is the user's choice.
        """
        installed, own = environment.installed, environment.own
        found: list[Missing] = []
        seen: set[tuple[str, str]] = set()
        waiting = [(requirement, "") for requirement in self._requirements]
        for requirement, by in waiting:  # grows
            name, extras = canonicalize_name(requirement.name), requirement.extras
            there = installed.get(name)
            if there is None or not _satisfies(requirement, there, is_own=name in own):
                found.append(Missing(requirement, by, there.version if there and not requirement.url else ""))
            elif (name in own or extras) and (key := (name, ",".join(sorted(extras)))) not in seen:
                seen.add(key)
                who = f"{name} {there.version}"
                waiting += [(one, who) for one in _applicable(environment.requires(name), extras)]
        return found

    def broken(self, environment: Environment) -> Iterator[str]:
        """Yield a sentence for each distribution that requires another version than the one installed for this side.

        It may still work, because many upper bounds are cautious.
        """
        installed, own = environment.installed, environment.own
        for name, there in installed.items():
            for one in _applicable(environment.requires(name), ()):
                needed = canonicalize_name(one.name)
                if needed in own and not holds(one, installed[needed]):
                    found = f"runs with {needed} {installed[needed].version}"
                    yield printable(f"{name} {there.version} requires {one}, and {found}")


def _parse(text: str, option: str) -> Requirement:
    try:
        requirement = Requirement(text)
    except InvalidRequirement as error:
        example = (
            "expected a requirement such as 'transformers==5.17.0', or 'torch @ file:///PATH/torch.whl' for a file"
        )
        raise UsageError(printable(f"{option} {text!r}: {example}")) from error
    told = printable(f"{option} {text!r}")
    if canonicalize_name(requirement.name) == OWN_NAME:
        raise UsageError(f"{told}: {OWN_NAME} measures both sides, so that it must be the same on both")
    if requirement.marker and not requirement.marker.evaluate():
        raise UsageError(f"{told}: its marker does not apply to this system; leave it out")
    if requirement.url:
        requirement.url = _fixed_url(requirement.url, told)
    return requirement


def _fixed_url(url: str, told: str) -> str:
    parts = urlsplit(url)
    if parts.scheme == "file":
        path = Path(unquote(parts.path))
        if not path.is_file():
            raise UsageError(f"{told}: expected an existing wheel or archive at {printable(str(path))}")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return f"{path.absolute().as_uri()}#sha256={digest}"
    if not _FIXED_COMMIT.match(url):
        raise UsageError(f"{told}: expected a file (file:///PATH) or a git commit (git+https://HOST/PATH@COMMIT, with "
                         "all 40 digits): what another address holds may change")  # fmt: skip
    return url


def _satisfies(requirement: Requirement, there: Installed, *, is_own: bool) -> bool:
    """Whether an installed distribution is the required one; of a file, only one installed for this side is known."""
    return holds(requirement, there) and (is_own or not requirement.url)


def _applicable(texts: Iterable[str], extras: Collection[str]) -> Iterator[Requirement]:
    for text in texts:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:  # an old distribution's
            continue
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield requirement
