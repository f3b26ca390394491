"""Where things are kept that are no baseline: beside the project, where git ignores them, and in the user's cache."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_VARIABLE = "LLMPERF_CACHE"


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


def user_folder(*names: str) -> Path:
    """A folder under ``LLMPERF_CACHE``, else under the user's cache folder; it need not exist."""
    from platformdirs import user_cache_dir

    return Path(os.environ.get(CACHE_VARIABLE) or user_cache_dir("pytest-llmperf")).expanduser().joinpath(*names)
