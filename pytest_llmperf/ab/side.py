"""One side of a comparison: a checkout and an environment in which its perf tests run."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import tomllib
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_llmperf.ab.checkout import check_out
from pytest_llmperf.errors import UsageError
from pytest_llmperf.text import printable


@dataclass(frozen=True)
class Side:
    """Where and with what one revision's perf tests run."""

    name: str
    commit: str
    folder: Path
    """Working directory: in the checkout, where the user's is in the repository."""
    python: str
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Recipe:
    """How to prepare a side.

    ``python`` is an interpreter of the user's own environment for this side: then nothing is installed. Otherwise the
    side gets an environment that lies over ours: what the project itself is comes from its checkout, all else from
    ours, unless the two revisions' own dependencies differ (``with_dependencies``). ``command`` takes the place of
    installing the project.
    """

    python: str | None = None
    command: str | None = None
    with_dependencies: bool = False


def prepare_side(  # noqa: PLR0913  # three places, and what is to be there
    name: str, commit: str, recipe: Recipe, *, root: Path, here: Path, place: Path
) -> Side:
    """Check out and build one side, unless ``place`` holds it from an interrupted series already.

    Args:
        name: ``base`` or ``head``.
        commit: its hash.
        recipe: how to prepare it.
        root: the user's repository.
        here: the user's working directory in it.
        place: an empty folder, or one that this function has filled before.

    Raises:
        UsageError: git, the build or ``command`` failed; its output is in ``place``.
    """
    checkout, done = place / "checkout", place / "prepared"
    python = recipe.python or str(place / "environment" / _BIN / "python")
    side = Side(name, commit, checkout / here.relative_to(root), python, _environment(root, checkout, python))
    if done.exists():
        return side
    place.mkdir(parents=True, exist_ok=True)
    if not checkout.exists():
        check_out(root, commit, checkout)
    if not recipe.python:
        _overlay(place / "environment")
    _build(side, recipe, checkout=checkout, log=place / "prepare.log")
    if not side.folder.is_dir():
        raise UsageError(f"{name}: there is no folder {here.relative_to(root)} in revision {commit[:12]}")
    done.write_text(commit, encoding="utf-8")
    return side


_BIN = "Scripts" if os.name == "nt" else "bin"


def _overlay(folder: Path) -> None:
    """An environment that sees all of ours, behind what is installed into itself."""
    venv.create(folder, clear=True, symlinks=os.name != "nt")
    own = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    ours = dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
    lines = [f"import site; site.addsitedir({path!r})" for path in ours]
    (Path(own) / "_llmperf_parent.pth").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _build(side: Side, recipe: Recipe, *, checkout: Path, log: Path) -> None:
    if recipe.command:
        _run(shlex.split(recipe.command), side, checkout, log)
    elif not recipe.python and (project := _project(checkout)):
        pip = [sys.executable, "-m", "pip", "--python", side.python, "install", "--quiet"]
        wanted = () if recipe.with_dependencies else ("--no-deps",)
        _run([*pip, *wanted, *_isolation(project), "."], side, checkout, log)
        _refuse_foreign_imports(side)


def _project(checkout: Path) -> dict[str, Any]:
    """The part of pyproject.toml that says how to build; empty if the checkout is no package."""
    pyproject = checkout / "pyproject.toml"
    data = tomllib.loads(pyproject.read_text(encoding="utf-8")) if pyproject.exists() else {}
    if "project" in data or "build-system" in data or (checkout / "setup.py").exists():
        return {"build-backend": "setuptools", **data.get("build-system", {})}
    return {}


def _isolation(project: Mapping[str, Any]) -> Sequence[str]:
    """Building with what is installed needs no registry, and compiles against the torch that will run."""
    backend = str(project["build-backend"]).partition(".")[0].partition(":")[0]
    return ("--no-build-isolation",) if importlib.util.find_spec(backend) else ()


_FOREIGN = """
import importlib.metadata, importlib.util, pathlib, sys
own = pathlib.Path(sys.prefix).resolve()
found = [path for path in sys.path if pathlib.Path(path).resolve().is_relative_to(own)]
for distribution in importlib.metadata.distributions(path=found):
    files = [file.parts[0].removesuffix(".py") for file in distribution.files or () if file.suffix == ".py"]
    for name in sorted({name for name in files if name.isidentifier()}):
        spec = importlib.util.find_spec(name)
        places = [spec.origin] if spec and spec.origin else list(spec.submodule_search_locations) if spec else []
        for place in places:
            if not pathlib.Path(place).resolve().is_relative_to(own):
                sys.exit(f"import {name} finds {place}")
"""


def _refuse_foreign_imports(side: Side) -> None:
    """An editable install that goes before everything else would make both sides run the user's checkout."""
    prefix = Path(side.python).parent.parent
    done = subprocess.run(
        [side.python, "-c", _FOREIGN],
        cwd=prefix,
        env=dict(side.environment),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        words = next(reversed(done.stderr.strip().splitlines()), "no reason given")
        raise UsageError(
            f"{side.name}: {printable(words)}, not this revision's: "
            f"uninstall the editable install, or bring an environment with --python-{side.name}"
        )


def _run(command: Sequence[str], side: Side, checkout: Path, log: Path) -> None:
    with log.open("ab") as file:
        try:
            code = subprocess.run(
                command, cwd=checkout, env=dict(side.environment), stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                check=False,
            ).returncode  # fmt: skip
        except OSError as error:
            raise UsageError(f"{side.name}: cannot run {command[0]!r}: {error.strerror}") from error
    if code:
        last = _telling_line(log.read_text(encoding="utf-8", errors="replace").strip().splitlines())
        raise UsageError(
            f"{side.name} ({side.commit[:12]}) does not build: {printable(last.strip())} (see {log}). "
            f"Build it with --prepare CMD, or bring an environment with --python-{side.name}"
        )


def _telling_line(lines: Sequence[str]) -> str:
    """The last line that names an error, else the last line."""
    errors = [line for line in lines if re.search(r"(Error|error): (?!subprocess-exited)", line)]
    return next(reversed(errors or lines), "it printed nothing")


def _environment(root: Path, checkout: Path, python: str) -> dict[str, str]:
    """Ours, with whatever points into the user's checkout pointing into this one."""
    variables = dict(os.environ)
    if paths := os.environ.get("PYTHONPATH"):
        variables["PYTHONPATH"] = os.pathsep.join(_moved(path, root, checkout) for path in paths.split(os.pathsep))
    if Path(python).is_relative_to(checkout.parent):
        variables["VIRTUAL_ENV"] = str(Path(python).parent.parent)
    variables["PATH"] = os.pathsep.join((str(Path(python).parent), os.environ.get("PATH", "")))
    return variables


def _moved(path: str, root: Path, checkout: Path) -> str:
    resolved = Path(path).resolve()
    return str(checkout / resolved.relative_to(root)) if path and resolved.is_relative_to(root) else path
