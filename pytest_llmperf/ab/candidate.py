"""Candidates of a bisection: the ordered steps from GOOD to BAD, one of which made a test slower or bigger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from pytest_llmperf.ab.checkout import commit_of, commits_after, is_ancestor, repository_root
from pytest_llmperf.ab.compare import PairedComparison
from pytest_llmperf.errors import UsageError
from pytest_llmperf.system.git import is_shallow, remote_of
from pytest_llmperf.text import printable


class Candidate(Protocol):
    """One step: a commit, or anything else that can be compared with GOOD."""

    @property
    def kind(self) -> str:
        """The word for it: ``commit`` or ``release``."""

    @property
    def name(self) -> str:
        """Short and unique, such as the first digits of a hash."""

    @property
    def title(self) -> str:
        """What it is, in a line: author, date and subject of a commit."""

    def beside_good(self, wanted: PairedComparison) -> PairedComparison:
        """Return the comparison with this candidate as head; ``wanted`` has GOOD as base."""


@dataclass(frozen=True, kw_only=True)
class CommitCandidate:
    """A commit as candidate."""

    commit: str
    author: str
    date: str
    """ISO 8601."""
    subject: str

    @property
    def kind(self) -> str:
        """The word for it."""
        return "commit"

    @property
    def name(self) -> str:
        """The first digits of its hash."""
        return self.commit[:12]

    @property
    def title(self) -> str:
        """Its author, day and subject."""
        return f"{self.author}, {self.date[:10]}: {self.subject}"

    def beside_good(self, wanted: PairedComparison) -> PairedComparison:
        """Return the comparison of GOOD with this commit."""
        return replace(wanted, head=self.commit)


def commit_candidates(good: str, bad: str, *, here: Path) -> Sequence[CommitCandidate]:
    """Return the commits after GOOD up to BAD, which is last, along the first parents.

    Args:
        good: revision.
        bad: revision.
        here: a folder of the repository.

    Raises:
        LlmperfError: a revision does not exist, they are the same, or GOOD is no ancestor of BAD.
    """
    root = repository_root(here)
    first, last = commit_of(root, good), commit_of(root, bad)
    names = f"GOOD ({printable(good)}, {first[:12]})", f"BAD ({printable(bad)}, {last[:12]})"
    if first == last:
        raise UsageError(f"{names[0]} and {names[1]} are the same commit: expected two")
    if not is_ancestor(root, first, last):
        raise UsageError(f"{names[0]} is not an ancestor of {names[1]}{_way_out(root, first, last)}")
    return [
        CommitCandidate(commit=commit, author=printable(author), date=date, subject=printable(subject))
        for commit, author, date, subject in commits_after(root, first, last)
    ]


def _way_out(root: Path, good: str, bad: str) -> str:
    if is_ancestor(root, bad, good):
        return ", but BAD is one of GOOD: swap them"
    if is_shallow(root):
        return f" in this shallow clone: run git fetch --unshallow {remote_of(root)}"
    return ": name an older GOOD, such as their git merge-base"
