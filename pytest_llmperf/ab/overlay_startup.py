"""Startup code of an overlay environment: appends the user's packages to the side's own.

It is copied into that environment and runs at its start. It imports only the standard library, because nothing else is
available there.
"""

import json
import site
import sys
from pathlib import Path
from typing import Any


def _append(folder: Path, left_out: "set[Path]") -> None:
    """Add a folder like ``site.addsitedir``, without the ``.pth`` files that lead to the user's revision."""
    if not folder.is_dir():
        return
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    for link in sorted(folder.glob("*.pth")):
        if not link.name.startswith(".") and link.resolve() not in left_out:
            site.addpackage(str(folder), link.name, None)


def _moved(path: str, settings: "dict[str, Any]") -> str:
    """Move a path into the user's checkout to this side's checkout; installed packages stay where they are."""
    found = Path(path).resolve()
    if any(found.is_relative_to(Path(folder).resolve()) for folder in (*settings["sites"], settings["own"])):
        return path
    for root in settings["repository"]:  # innermost first
        if found.is_relative_to(root):
            return str(Path(settings["checkout"], found.relative_to(root)))
    return path


def _continue(settings: "dict[str, Any]") -> None:
    left_out = {Path(path) for path in settings["left_out"]}
    for folder in settings["sites"]:
        _append(Path(folder), left_out)
    sys.path[:] = dict.fromkeys(_moved(path, settings) if path else path for path in sys.path)


_continue(json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8")))
