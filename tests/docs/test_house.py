"""CONTRIBUTING's list of folders is complete, and import-linter's layers are those folders."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest_llmperf

ROOT = Path(__file__).parents[2]
PACKAGE = Path(pytest_llmperf.__file__).parent


def layers() -> list[str]:
    """Return the layers of the contract, from the top."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = settings["tool"]["importlinter"]["contracts"]
    return [name for line in contract["layers"] for name in line.split(" | ")]


def test_the_map_is_the_folders_and_fits_a_screen():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?) \|", text.partition("## The house")[2].partition("\n## ")[0], re.MULTILINE)
    told = [re.sub(r"/|\.py", "", name) for row in rows for name in re.findall(r"`([\w/.]+)`", row)]
    assert len(rows) <= 24
    assert told == [name for name in layers() if name != "__main__"]


def test_the_layers_are_all_there_is():
    """The root holds only modules that users import or pytest loads."""
    found = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert found - {"__init__"} == set(layers())
    assert len([path for path in PACKAGE.glob("*.py") if path.stem != "__main__"]) <= 7


def test_no_two_modules_and_no_two_classes_have_one_name():
    """A search for a name finds one definition."""
    modules = [path.stem for path in PACKAGE.rglob("*.py") if not path.stem.startswith("__")]
    assert len(modules) == len(set(modules))
    classes = re.findall(
        r"^class (\w+)", "\n".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")), re.MULTILINE
    )
    assert len(classes) == len(set(classes))
