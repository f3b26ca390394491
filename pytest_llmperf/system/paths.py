"""Where things are kept that are no baseline: beside the project, where git ignores them, and in the user's cache."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

CACHE_VARIABLE = "LLMPERF_CACHE"
KEPT_RUNS = 20
"""Of how many runs the leavings are kept."""


def scratch_folder(root: Path, *names: str) -> Path:
    """A folder of that name under the project's scratch folder, made if it is not there.

    Raises:
        OSError: it cannot be made.
    """
    top = root / ".llmperf"
    folder = top.joinpath(*names)
    folder.mkdir(parents=True, exist_ok=True)
    (top / ".gitignore").write_text("*\n", encoding="utf-8")
    return folder


def run_folder(root: Path, kind: str, run_id: str) -> Path:
    """The scratch folder of one run, made if it is not there; then the oldest of its kind makes room.

    Raises:
        OSError: it cannot be made.
    """
    kinds = scratch_folder(root, kind)
    if not (kinds / run_id).exists():
        make_room(kinds)
    return scratch_folder(root, kind, run_id)


def make_room(folder: Path) -> None:
    """Remove what the oldest runs left: what lies in a folder is named after runs, and so after their times."""
    for old in sorted(path for path in folder.iterdir() if not path.name.startswith("."))[: -(KEPT_RUNS - 1)]:
        if old.is_dir():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.unlink(missing_ok=True)


def user_folder(*names: str) -> Path:
    """A folder under ``LLMPERF_CACHE``, else under the user's cache folder; it need not exist."""
    from platformdirs import user_cache_dir

    return Path(os.environ.get(CACHE_VARIABLE) or user_cache_dir("pytest-llmperf")).expanduser().joinpath(*names)
