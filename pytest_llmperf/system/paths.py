"""Paths: the project's ``.llmperf/``, which git ignores, and the user cache."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

CACHE_VARIABLE = "LLMPERF_CACHE"
USERS_FOLDER_VARIABLE = "LLMPERF_USERS_FOLDER"
"""Names the user's working directory to the processes of ``llmperf ab``, which run in other checkouts."""
KEPT_RUNS = 20
"""Number of runs whose files are kept."""


def scratch_folder(root: Path, *names: str) -> Path:
    """Return a folder of that name in the project's ``.llmperf/``; create it if it is missing.

    Raises:
        OSError: it cannot be created.
    """
    top = root / ".llmperf"
    folder = top.joinpath(*names)
    folder.mkdir(parents=True, exist_ok=True)
    (top / ".gitignore").write_text("*\n", encoding="utf-8")
    return folder


def run_folder(root: Path, kind: str, run_id: str) -> Path:
    """Return the scratch folder of one run; if it is missing, delete the oldest of its kind and create it.

    Raises:
        OSError: it cannot be created.
    """
    kinds = scratch_folder(root, kind)
    if not (kinds / run_id).exists():
        make_room(kinds)
    return scratch_folder(root, kind, run_id)


def make_room(folder: Path) -> None:
    """Delete the files of the oldest runs: names are run ids, which start with the run's time."""
    for old in sorted(path for path in folder.iterdir() if not path.name.startswith("."))[: -(KEPT_RUNS - 1)]:
        if old.is_dir():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.unlink(missing_ok=True)


def user_folder(*names: str) -> Path:
    """Return a folder under ``LLMPERF_CACHE``, else under the user's cache folder; it need not exist."""
    from platformdirs import user_cache_dir

    return Path(os.environ.get(CACHE_VARIABLE) or user_cache_dir("pytest-llmperf")).expanduser().joinpath(*names)
