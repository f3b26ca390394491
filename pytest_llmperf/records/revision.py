"""Which commit of the user's project a run measured."""

from __future__ import annotations

import subprocess
from pathlib import Path

GIT_TIMEOUT_S = 10.0


def head_commit(folder: Path) -> str | None:
    """The commit checked out in ``folder``; ``None`` outside a git repository or without git."""
    return _git(folder, "rev-parse", "HEAD")


def is_dirty(folder: Path) -> bool | None:
    """Whether tracked files differ from the commit; ``None`` outside a git repository.

    Baselines do not count: recording one run would make the next one dirty.
    """
    status = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)*baselines/*.json")
    return None if status is None else bool(status)


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=GIT_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
