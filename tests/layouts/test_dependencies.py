"""Each side runs with the dependencies that its own files ask for, or is refused: both never run with head's."""

from __future__ import annotations

import subprocess
import sys

import pytest
from layout import PACKAGE, SETTINGS, assert_red, assert_refused

LOCK = '[[package]]\nname = "helper"\nversion = "{version}"\nsource = { registry = "index" }\n'
PROJECT = PACKAGE.format(name="engine").replace('"0.1"', '"0.1"\ndependencies = ["helper=={version}"]')
DYNAMIC = 'dynamic = ["dependencies"]'
FILES = {
    "requirements": ("requirements.txt", "helper=={version}\n"),
    "lock": ("uv.lock", LOCK),
    "code": ("setup.py", 'from setuptools import setup\nsetup(install_requires=["helper=={version}"])\n'),
}


@pytest.fixture(scope="session")
def wheels(tmp_path_factory):
    """A dependency in two versions, of which the second repeats more often."""
    folder = tmp_path_factory.mktemp("wheels")
    for version in (1, 2):
        source = tmp_path_factory.mktemp("helper")
        (source / "pyproject.toml").write_text(
            PACKAGE.format(name="helper").replace("0.1", f"{version}.0") + '[tool.setuptools]\npy-modules=["helper"]\n'
        )
        (source / "helper.py").write_text(f"TIMES = {2 * version - 1}\n")
        pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, source]
        subprocess.run(pip, check=True, capture_output=True)
    return folder


@pytest.fixture
def bumped(layout, wheels):
    """Returns a function that makes a pull request which bumps the dependency in a file, installed as head asks."""

    def make(file, text):
        layout.variables |= {"PIP_FIND_LINKS": str(wheels), "PIP_NO_INDEX": "1"}
        layout.variables |= {"UV_FIND_LINKS": str(wheels), "UV_OFFLINE": "1"}
        layout.make_environment()
        layout.project("engine", "helper")
        if file == "setup.py":  # the files of the two revisions do not say it, what is built from them does
            layout.write(
                {"pyproject.toml": PROJECT.replace('dependencies = ["helper=={version}"]', DYNAMIC) + SETTINGS}
            )
        layout.write({file: text.replace("{version}", "1.0")})
        layout.begin()
        layout.branch({file: text.replace("{version}", "2.0")})
        layout.install("helper==2.0")
        layout.install("-e", ".")
        return layout

    return make


@pytest.mark.parametrize("kind", FILES)
def test_a_pull_request_that_bumps_a_dependency(bumped, kind):
    """Base runs with the version that it asks for."""
    layout = bumped(*FILES[kind])
    result = layout.ab()
    assert_red(result)
    assert layout.more_operators == 2
    assert "base and head differ in helper: 1.0 -> 2.0" in result.text


def test_a_bump_in_an_environment_made_by_uv(bumped, layout):
    """It has no pip."""
    pytest.importorskip("uv", reason="uv is not installed")
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "venv", "-q", f"--python={sys.executable}", layout.environment], check=True)
    assert_red(bumped(*FILES["requirements"]).ab())


def test_a_bump_that_cannot_be_followed(bumped, tmp_path):
    """Refused with the options that help; one of them says that it is meant so."""
    layout = bumped(*FILES["requirements"])
    layout.variables["PIP_FIND_LINKS"] = str(tmp_path)
    assert_refused(layout.ab(), "base (", "helper==1.0 (requirements.txt)", "--same-environment")
    here = f"--python-base={layout.python}"
    assert_refused(layout.ab(here), "helper==1.0 (requirements.txt), and its environment has 2.0")
    result = layout.ab("--same-environment")
    assert (result.code, "1 unchanged" in result.last_line) == (0, True)


def test_a_file_of_another_tools(bumped):
    """Nothing of it can be installed by pip."""
    layout = bumped("environment.yml", "dependencies: [helper={version}]\n")
    assert_refused(layout.ab(), "base and head differ in environment.yml", "--same-environment")


def test_blocks_are_of_one_environment(layout, wheels):
    """The same two commits after a package of the environment has changed are measured anew."""
    layout.variables |= {"PIP_FIND_LINKS": str(wheels), "PIP_NO_INDEX": "1"}
    layout.make_environment()
    layout.project("engine", "helper")
    layout.begin()
    layout.branch({"README": "more"})
    layout.install("-e", ".")
    layout.install("helper==1.0")
    assert layout.ab().code == 0
    before = layout.verdicts.tests[0].cells
    layout.install("helper==2.0")
    result = layout.ab()
    assert result.code == 0
    assert "the environment has changed since blocks of this comparison were kept" in result.text
    assert [cell.value for cell in layout.verdicts.tests[0].cells] != [cell.value for cell in before]
