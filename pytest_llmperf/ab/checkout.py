"""Clean checkouts of revisions, away from the user's own, which is only read."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from pytest_llmperf.errors import UsageError
from pytest_llmperf.records.revision import check_revision
from pytest_llmperf.text import printable

# Fixed, so that an unchanged working tree is the same commit each time and an interrupted series can go on.
_SNAPSHOT_IDENTITY = {
    f"GIT_{role}_{field}": value
    for role in ("AUTHOR", "COMMITTER")
    for field, value in (("NAME", "llmperf"), ("EMAIL", "llmperf@localhost"), ("DATE", "2000-01-01T00:00:00Z"))
}


def repository_root(folder: Path) -> Path:
    """The top of the git repository that a folder is in.

    Raises:
        UsageError: it is in none, or there is no git.
    """
    return Path(_git(folder, "rev-parse", "--show-toplevel"))


def commit_of(root: Path, revision: str) -> str:
    """The full hash of a revision's commit.

    Raises:
        BaselineError: git knows no such revision.
    """
    check_revision(root, revision)
    return _git(root, "rev-parse", "--verify", f"{revision}^{{commit}}")


def merge_base(root: Path, revision: str) -> str:
    """The commit where HEAD left the history of a branch.

    Raises:
        LlmperfError: git knows no such revision, or they share no history (a shallow clone has too little of it).
    """
    check_revision(root, revision)
    return _git(root, "merge-base", revision, "HEAD")


def working_tree_commit(root: Path) -> str:
    """A commit of the working tree as it is, untracked files included, ignored ones not.

    Its objects are added to the repository; no branch, index or file changes. It is HEAD's commit if nothing differs.

    Raises:
        UsageError: git cannot do it.
    """
    head = _git(root, "rev-parse", "HEAD")
    with tempfile.TemporaryDirectory() as scratch:
        index = {"GIT_INDEX_FILE": str(Path(scratch) / "index")}
        _git(root, "read-tree", "HEAD", variables=index)
        _git(root, "add", "--all", variables=index)
        tree = _git(root, "write-tree", variables=index)
    if tree == _git(root, "rev-parse", "HEAD^{tree}"):
        return head
    return _git(root, "commit-tree", tree, "-p", head, "-m", "working tree", variables=_SNAPSHOT_IDENTITY)


def check_out(root: Path, commit: str, folder: Path) -> None:
    """A checkout of a commit in a repository of its own, which borrows the objects of the user's.

    Raises:
        UsageError: git cannot do it.
    """
    _git(root, "clone", "--quiet", "--shared", "--no-checkout", str(root), str(folder))
    _git(folder, "checkout", "--quiet", "--detach", commit)


def differing_files(root: Path, base: str, head: str) -> set[str]:
    """Names of the files that differ between two commits."""
    return set(_git(root, "diff", "--name-only", "--no-renames", base, head).splitlines())


def is_ignored(root: Path, path: str) -> bool:
    """Whether git ignores a path."""
    command = ["git", "check-ignore", "--quiet", "--", path]
    return subprocess.run(command, cwd=root, capture_output=True, check=False).returncode == 0


def _git(folder: Path, *arguments: str, variables: Mapping[str, str] | None = None) -> str:
    command = ["git", "-c", "core.hooksPath=/dev/null", *arguments]
    try:
        done = subprocess.run(
            command, cwd=folder, env={**os.environ, **(variables or {})}, capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise UsageError(f"cannot run git: {error.strerror}") from error
    if done.returncode:
        words = next(iter(done.stderr.strip().splitlines()), f"exit code {done.returncode}")
        raise UsageError(f"git {arguments[0]} in {folder}: {printable(words)}")
    return done.stdout.strip()
