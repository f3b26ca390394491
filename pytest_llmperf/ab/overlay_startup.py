"""Continues the user's environment behind a side's own packages: copied into that environment and run at its start.

It imports only the standard library, since nothing else is found where it runs.
"""

import json
import site
import sys
from pathlib import Path
from typing import Any


def _append(folder: Path, left_out: "set[Path]") -> None:
    """What ``site.addsitedir`` does, without the links that lead to the user's revision of the repository."""
    if not folder.is_dir():
        return
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    for link in sorted(folder.glob("*.pth")):
        if not link.name.startswith(".") and link.resolve() not in left_out:
            site.addpackage(str(folder), link.name, None)


def _moved(path: str, settings: "dict[str, Any]") -> str:
    """A path into the user's checkout, in this side's checkout; what is installed there stays."""
    found = Path(path).resolve()
    if any(found.is_relative_to(Path(folder).resolve()) for folder in (*settings["sites"], settings["own"])):
        return path
    for root in settings["repository"]:  # the innermost first
        if found.is_relative_to(root):
            return str(Path(settings["checkout"], found.relative_to(root)))
    return path


def _continue(settings: "dict[str, Any]") -> None:
    left_out = {Path(path) for path in settings["left_out"]}
    for folder in settings["sites"]:
        _append(Path(folder), left_out)
    sys.path[:] = dict.fromkeys(_moved(path, settings) if path else path for path in sys.path)


_continue(json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8")))
