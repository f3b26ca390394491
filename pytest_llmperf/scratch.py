"""The folder ``.llmperf`` of a project: what runs leave behind, which git ignores."""

from __future__ import annotations

from pathlib import Path


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
