"""Overlay environment of a side: its own packages, and behind them all of the user's environment."""

from __future__ import annotations

import json
import os
import shutil
import sys
import sysconfig
import venv
from collections.abc import Sequence
from importlib.machinery import PathFinder
from pathlib import Path

from pytest_llmperf.errors import UsageError

BIN = "Scripts" if os.name == "nt" else "bin"

_STARTUP = Path(__file__).with_name("overlay_startup.py")
"""Copied, not imported: importing it runs it."""

_PIP = """#!/bin/sh
exec "$(dirname "$0")/python" -m pip "$@"
"""


def python_of(environment: Path) -> Path:
    """Return the interpreter of an environment."""
    return environment / BIN / "python"


def create_overlay(  # noqa: PLR0913  # what the environment falls back to, and what not
    folder: Path,
    *,
    own: Path,
    checkout: Path,
    repository: Sequence[Path],
    sites: Sequence[Path],
    left_out: Sequence[Path],
) -> None:
    """Create an environment that falls back to the user's for all that is not installed in it.

    Args:
        folder: of the environment.
        own: folder of the side.
        checkout: of the side's revision; search paths into the repository are moved there.
        repository: the user's worktrees.
        sites: folders of installed packages, in the search order of the user's environment.
        left_out: ``.pth`` files to ignore.
    """
    venv.create(folder, clear=True, symlinks=os.name != "nt")
    place = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    settings = {
        "own": str(own),
        "checkout": str(checkout),
        "repository": [str(root) for root in sorted(repository, key=lambda root: len(root.parts), reverse=True)],
        "sites": [str(site) for site in sites],
        "left_out": [str(path) for path in left_out],
    }
    (place / "_llmperf_side.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")
    shutil.copyfile(_STARTUP, place / "_llmperf_side.py")
    (place / "_llmperf_side.pth").write_text("import _llmperf_side\n", encoding="utf-8")
    _add_pip(folder / BIN)


def install_command(python: str, *, dependencies: bool) -> list[str]:
    """Return the start of an install command: ``uv``'s if it made the user's environment, else ``pip``'s.

    ``uv`` does not see the packages that an overlay falls back to, and would install them again. It therefore installs
    no dependencies.

    Args:
        python: interpreter of the environment.
        dependencies: whether to install a package's missing dependencies as well.

    Raises:
        UsageError: the user's environment has neither.
    """
    uv = shutil.which("uv")
    if uv and (_is_made_by_uv() or not has_pip()):
        return [uv, "pip", "install", "--quiet", "--no-deps", "--python", python]
    if not has_pip():
        raise UsageError("this environment has no pip, and there is no uv: install one of them")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--disable-pip-version-check"]
    return pip if dependencies else [*pip, "--no-deps"]


def has_pip() -> bool:
    """Whether pip is on the search path.

    Other finders are not asked: setuptools has one that keeps this process from using setuptools later.
    """
    return PathFinder.find_spec("pip") is not None


def _is_made_by_uv() -> bool:
    settings = Path(sys.prefix) / "pyvenv.cfg"
    return settings.exists() and any(
        line.partition("=")[0].strip() == "uv" for line in settings.read_text(encoding="utf-8").splitlines()
    )


def _add_pip(folder: Path) -> None:
    """Add a pip of its own; without it, a prepare command would install into the user's environment."""
    if os.name != "nt" and has_pip():
        for name in ("pip", "pip3"):
            (folder / name).write_text(_PIP, encoding="utf-8")
            (folder / name).chmod(0o755)
