"""Git queries about the user's project: the commit that a run measured, and files at other revisions."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_llmperf.errors import BaselineError
from pytest_llmperf.text import printable

GIT_TIMEOUT_S = 10.0

_REPOSITORY_VARIABLES = (
    *("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_PREFIX", "GIT_NAMESPACE"),
    *("GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_QUARANTINE_PATH"),
)


_NOT_BASELINES = (":(top)", ":(top,exclude)*baselines/*.json")
"""Pathspecs of all files except baselines, because recording one changes no code."""


@dataclass(frozen=True)
class Commit:
    """One commit; author and subject are untrusted text."""

    hash: str
    author: str
    subject: str


@dataclass(frozen=True)
class CommitsBetween:
    """Commits between two revisions, without merges and without commits that only record baselines."""

    ahead: int
    """Number of commits that only the second revision has."""
    behind: int
    """Number of commits that only the first revision has."""
    only: Commit | None
    """The commit, if there is exactly one on both sides together."""


def git_environment() -> dict[str, str]:
    """Return our environment without the variables in which a git hook names the repository that it runs in."""
    return {name: value for name, value in os.environ.items() if name not in _REPOSITORY_VARIABLES}


def head_commit(folder: Path) -> str | None:
    """Return the commit checked out in ``folder``; ``None`` without a git repository, a commit in it, or git.

    Raises:
        BaselineError: git refuses the repository because another user owns it.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        _refuse_unsafe(folder)
    return commit and commit.strip()


def is_shallow(folder: Path) -> bool:
    """Whether a repository is a shallow clone."""
    return (_git(folder, "rev-parse", "--is-shallow-repository") or "").strip() == "true"


def remote_of(folder: Path) -> str:
    """Return the remote to fetch a missing revision from: ``origin``, or else the first one."""
    remotes = (_git(folder, "remote") or "").split()
    return "origin" if "origin" in remotes or not remotes else remotes[0]


def commits_between(folder: Path, base: str, now: str) -> CommitsBetween | None:
    """Return the commits between two commits of a repository.

    Return ``None`` if a name is not a commit's hash, or if git lacks a commit or the history between them.
    """
    if not all(re.fullmatch(r"[0-9a-f]{7,64}", name) for name in (base, now)):
        return None
    ahead, behind = (_commits(folder, *span) for span in ((base, now), (now, base)))
    if ahead is None or behind is None or (behind and is_shallow(folder)):
        return None
    every = [*ahead, *behind]
    return CommitsBetween(len(ahead), len(behind), _commit(folder, every[0]) if len(every) == 1 else None)


def folder_in_repository(folder: Path) -> str:
    """Return a folder's path in its repository, such as ``packages/engine/``; empty at its root, or outside of one."""
    return (_git(folder, "rev-parse", "--show-prefix") or "").strip()


def is_dirty(folder: Path) -> bool | None:
    """Whether tracked files differ from the commit; ``None`` outside a git repository.

    Baselines are ignored, because recording one run would make the next one dirty.
    """
    status = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)*baselines/*.json")
    return None if status is None else bool(status.strip())


def file_at(folder: Path, revision: str, path: Path) -> str:
    """Return the content of a file at a revision.

    Args:
        folder: an existing folder of the repository.
        revision: a commit, branch or tag, as git names them.
        path: the file, absolute or relative to ``folder``; it need not exist in the working tree.

    Raises:
        BaselineError: there is no such repository, revision or file.
    """
    check_revision(folder, revision)
    # cat-file instead of show: no pager, no filters, and an error for a folder.
    inside = _inside(folder, path)
    text = _git(folder, "cat-file", "blob", f"{revision}:{inside}")
    if text is None:
        raise BaselineError(
            f"{printable(revision)}:{path.name}: there is no file {inside.removeprefix('./')} at that revision; "
            "expected a baseline that was committed"
        )
    return text


def is_file_at(folder: Path, revision: str, path: Path) -> bool:
    """Whether a file exists at a revision; arguments as for :func:`file_at`.

    Raises:
        BaselineError: there is no such repository or revision.
    """
    check_revision(folder, revision)
    return _git(folder, "cat-file", "-e", f"{revision}:{_inside(folder, path)}") is not None


def files_at(folder: Path, revision: str, inside: Path) -> list[str]:
    """Return the names in a folder at a revision, sorted; none if it is not there. Arguments as for :func:`file_at`.

    Raises:
        BaselineError: there is no such repository or revision.
    """
    check_revision(folder, revision)
    listed = _git(folder, "ls-tree", "--name-only", "-z", f"{revision}:{_inside(folder, inside)}")
    return sorted(filter(None, (listed or "").split("\0")))


def check_revision(folder: Path, revision: str) -> None:
    """Reject a revision that git does not know.

    Raises:
        BaselineError: there is no such repository or revision.
    """
    name = repr(printable(revision))
    if not revision or revision.startswith("-"):  # git would parse an option, or read the index
        raise BaselineError(f"{name} is not a git revision; expected a commit, branch or tag")
    if _git(folder, "rev-parse", "--git-dir") is None:
        _refuse_unsafe(folder)
        raise BaselineError(f"revision {name}: {folder} is not in a git repository, or git cannot read it")
    if _git(folder, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}") is None:
        fetch = f"git fetch --depth=1 {remote_of(folder)} {printable(revision)}, or git fetch --unshallow"
        more = f". This clone is shallow: run {fetch}" if is_shallow(folder) else ""
        raise BaselineError(f"unknown git revision {name}; expected a commit, branch or tag{more}")


def _commits(folder: Path, without: str, of: str) -> list[str] | None:
    listed = _git(folder, "rev-list", "--no-merges", f"{without}..{of}", "--", *_NOT_BASELINES)
    return None if listed is None else listed.split()


def _commit(folder: Path, name: str) -> Commit | None:
    words = ("--no-show-signature", "--no-color", "--encoding=UTF-8", "--format=%H%x00%an%x00%s")
    told = _git(folder, "log", "--max-count=1", *words, name)
    if told is None:
        return None
    # A subject may be in any encoding, and what is not UTF-8 cannot be written as JSON.
    name, author, subject = told.encode(errors="surrogateescape").decode(errors="replace").strip("\n").split("\0")
    return Commit(name, author, subject)


def _inside(folder: Path, path: Path) -> str:
    """Return the path as git expects it: relative to ``folder``, with a leading ``./``."""
    return "./" + Path(os.path.relpath((folder / path).resolve(), folder.resolve())).as_posix()


def _refuse_unsafe(folder: Path) -> None:
    """Raise if git does not trust the repository: it is not missing, and its commit must not be stored as unknown."""
    words = _run(folder, "rev-parse", "--git-dir")
    if words and words.returncode and "safe.directory" in words.stderr:
        raise BaselineError(
            f"git refuses the repository of {folder}, which another user owns: "
            f"run git config --global --add safe.directory {_trusted_path(words.stderr) or folder}"
        )


def _trusted_path(words: str) -> str:
    """Return the folder that git asks to trust: the repository's top."""
    found = re.search(r"safe\.directory (\S.*)$", words, re.MULTILINE)
    return printable(found[1]) if found else ""


def run_git(
    folder: Path,
    *arguments: str,
    variables: Mapping[str, str] | None = None,
    text: str | None = None,
    timeout_s: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run git without hooks.

    Args:
        folder: working directory.
        arguments: git's arguments.
        variables: further environment variables.
        text: standard input.
        timeout_s: longest time in seconds; ``None`` for no limit.

    Raises:
        OSError: git cannot be started.
        subprocess.TimeoutExpired: it took longer.
    """
    return subprocess.run(
        ["git", "-c", "core.hooksPath=/dev/null", *arguments],
        cwd=folder,
        env=git_environment() | dict(variables or {}),
        input=text,
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        timeout=timeout_s,
        check=False,
    )


def _git(folder: Path, *arguments: str) -> str | None:
    done = _run(folder, *arguments)
    return done.stdout if done and done.returncode == 0 else None


def _run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str] | None:
    try:
        return run_git(folder, *arguments, timeout_s=GIT_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
