"""Each side runs with the dependencies of its own files, or is refused; base never runs with head's dependencies."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys

import pytest
from layout import PACKAGE, SETTINGS, assert_red, assert_refused
from wheels import write_wheel

NAMES = ("required", "locked", "built")
REQUIREMENTS = "required=={version}\n"
FILES = {
    "requirements.txt": REQUIREMENTS,
    "uv.lock": '[[package]]\nname = "locked"\nversion = "{version}"\nsource = { registry = "index" }\n',
    "setup.py": 'from setuptools import setup\nsetup(install_requires=["built=={version}"])\n',
}
DOES_NOT_BUILD = """  # on either side: {version}
import os
from setuptools import setup
if "LLMPERF_SIDE" in os.environ:
    raise RuntimeError("no compiler")
setup()
"""
PYPROJECT = PACKAGE.format(name="engine").replace('"0.1"', '"0.1"\ndynamic = ["dependencies"]') + SETTINGS


@pytest.fixture(scope="session")
def wheels(tmp_path_factory):
    """Dependencies in two versions; the second one repeats more often."""
    folder = tmp_path_factory.mktemp("wheels")
    for name, version in itertools.product(NAMES, (1, 2)):
        write_wheel(folder, name, f"{version}.0", f"TIMES = {2 * version - 1}\n")
    return folder


@pytest.fixture
def offline(layout, wheels):
    """An environment that installs packages from a folder only."""
    layout.offline(wheels)
    layout.make_environment()
    return layout


def bump(layout, files):
    """Create a pull request that bumps dependencies, and install the versions of head."""
    layout.project("engine", *NAMES)
    layout.write(
        {"pyproject.toml": PYPROJECT} | {name: text.replace("{version}", "1.0") for name, text in files.items()}
    )
    layout.begin()
    layout.branch({name: text.replace("{version}", "2.0") for name, text in files.items()})
    layout.install(*(f"{name}==2.0" for name in NAMES))
    layout.install("-e", ".")


@pytest.mark.parametrize("tool", ["pip", "uv"])
def test_a_pull_request_that_bumps_dependencies(layout, offline, tool):
    """Base gets its own versions from a requirements file, from a lock file, and from the package's build metadata."""
    if tool == "uv":
        shutil.rmtree(layout.environment)
        uv = [sys.executable, "-m", "uv"]
        subprocess.run([*uv, "venv", "-q", f"--python={sys.executable}", layout.environment], check=True)
        layout.make_environment()
    bump(offline, FILES)
    result = layout.ab()
    assert_red(result)
    assert layout.more_operators == 6
    said = " ".join(result.text.split())  # of any width
    assert "base and head differ in built: 1.0 -> 2.0, locked: 1.0 -> 2.0, required: 1.0 -> 2.0" in said


def test_a_bump_that_cannot_be_followed(offline, tmp_path):
    """The error names the options that help; ``--same-environment`` says that the difference is intended."""
    bump(offline, {"requirements.txt": REQUIREMENTS})
    offline.variables["PIP_FIND_LINKS"] = str(tmp_path)
    assert_refused(offline.ab(), "base (", "required==1.0 (requirements.txt)", "--same-environment")
    here = f"--python-base={offline.python}"
    assert_refused(offline.ab(here), "required==1.0 (requirements.txt), and the environment has 2.0")
    result = offline.ab("--same-environment")
    assert (result.code, "1 unchanged" in result.last_line) == (0, True)
    assert "base and head differ in requirements.txt: both run with what is installed here" in result.text


def test_a_file_of_another_tools(offline):
    """No package of it can be installed by pip."""
    bump(offline, {"environment.yml": "dependencies: [required={version}]\n"})
    assert_refused(offline.ab(), "base and head differ in environment.yml", "--same-environment")


def test_blocks_are_of_one_environment(offline):
    """After a package of the environment changed, blocks of the same two commits are not reused."""
    bump(offline, {"setup.py": DOES_NOT_BUILD})
    assert_refused(offline.ab(), "does not build: RuntimeError: no compiler")
    assert "the environment has changed" not in offline.ab().text
    offline.install("locked==1.0")
    assert "the environment has changed since blocks of this comparison were kept: it starts anew" in offline.ab().text
