"""Releases of a package as the candidates of a bisection, with the same code on both sides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from packaging.version import Version

from pytest_llmperf.ab.checkout import commit_of, repository_root
from pytest_llmperf.ab.compare import PairedComparison
from pytest_llmperf.ab.package_versions import versions_between

_OPTION = "--package"


@dataclass(frozen=True, kw_only=True)
class Release:
    """A release as candidate."""

    package: str
    version: Version
    previous: Version
    """The release before it that pip lists."""

    @property
    def kind(self) -> str:
        """The word for it."""
        return "release"

    @property
    def name(self) -> str:
        """Its requirement."""
        return f"{self.package}=={self.version}"

    @property
    def title(self) -> str:
        """The release before it."""
        return f"after {self.previous}"

    def beside_good(self, wanted: PairedComparison) -> PairedComparison:
        """Return the comparison of GOOD with this release, on GOOD's commit."""
        recipe = wanted.head_recipe.with_package(self.package, self.version, option=_OPTION)
        return replace(wanted, head=wanted.base, head_recipe=recipe)


@dataclass(frozen=True, kw_only=True)
class PackageRange:
    """Two releases of a package, the older one first."""

    package: str
    good: str
    bad: str


def releases_beside_good(
    wanted: PairedComparison, searched: PackageRange, *, here: Path
) -> tuple[PairedComparison, Sequence[Release]]:
    """Return the comparison with the good release as base, and the releases after it up to the bad one, which is last.

    Args:
        wanted: with the commit to run as base.
        searched: the package, and the releases to begin and to end with.
        here: a folder of the repository.

    Raises:
        LlmperfError: pip does not list one of the releases, or git knows no such commit.
    """
    package, commit = searched.package, commit_of(repository_root(here), wanted.base)
    versions = versions_between(package, searched.good, searched.bad)
    recipe = wanted.base_recipe.with_package(package, versions[0], option=_OPTION)
    releases = [Release(package=package, version=one, previous=before) for before, one in pairwise(versions)]
    return replace(wanted, base=commit, base_recipe=recipe), releases
