"""Each side imports its own revision, over an environment that holds all else."""

from __future__ import annotations

import subprocess
import sys

import pytest
from repository import commit, git

from pytest_llmperf.ab.compare import _repository
from pytest_llmperf.ab.side import Recipe, SideBuilder, prepare_sides
from pytest_llmperf.errors import UsageError

# A build backend without dependencies, so that nothing is downloaded.
BACKEND = """
import zipfile

def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    name = "toy-1-py3-none-any.whl"
    with zipfile.ZipFile(f"{wheel_directory}/{name}", "w") as wheel:
        wheel.write("src/toy.py", "toy.py")
        wheel.writestr("toy-1.dist-info/METADATA", "Metadata-Version: 2.1\\nName: toy\\nVersion: 1\\n")
        wheel.writestr("toy-1.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("toy-1.dist-info/RECORD", "toy.py,,\\ntoy-1.dist-info/RECORD,,\\n")
    return name
"""
PYPROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n[project]\nname="toy"\n'
WHERE = "import toy, numpy; print(toy.REVISION, toy.__file__)"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Two revisions of a package, the second of which does not build."""
    folder = tmp_path / "project"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    files = {"pyproject.toml": PYPROJECT, "backend.py": BACKEND, "src/toy.py": "REVISION = 1", "tests/test_a.py": ""}
    first = commit(folder, files)
    broken = commit(folder, {"backend.py": "raise RuntimeError('no compiler')"})
    commit(folder, {"src/toy.py": "REVISION = 'of the user'"})
    monkeypatch.setenv("PYTHONPATH", str(folder / "src"))
    return folder, first, broken


def prepared(project, commit, tmp_path, *, here="tests", **recipe):
    """Base of a comparison with itself: head asks for nothing else."""
    folder = project[0]
    place = tmp_path / "place" / "base"
    builder = SideBuilder("base", commit, Recipe(**recipe), repository=_repository(folder, folder / here), place=place)
    return prepare_sides([builder, builder], same_environment=True)[0][0]


def where(side):
    command = [side.python, "-c", WHERE]
    return subprocess.run(
        command, cwd=side.folder, env=dict(side.environment), check=True, capture_output=True, text=True
    ).stdout.split()


def test_a_package_is_installed_from_its_revision(project, tmp_path, monkeypatch):
    """Not from the user's checkout, and with the user's numpy."""
    monkeypatch.delenv("PYTHONPATH")
    side = prepared(project, project[1], tmp_path)
    revision, path = where(side)
    assert revision == "1"
    assert path.startswith(str(tmp_path / "place" / "base" / "environment"))
    assert side.folder == tmp_path / "place" / "base" / "checkout" / "tests"
    assert prepared(project, project[1], tmp_path) == side, "what is prepared is not prepared again"


def test_a_search_path_into_the_users_checkout_leads_into_this_one(project, tmp_path):
    """An absolute PYTHONPATH would make both sides run the same code."""
    side = prepared(project, project[1], tmp_path, python=sys.executable)
    assert where(side) == ["1", str(tmp_path / "place" / "base" / "checkout" / "src" / "toy.py")]


def test_a_command_takes_the_place_of_installing(project, tmp_path):
    """It runs in the checkout with the side's python first."""
    side = prepared(project, project[2], tmp_path, command="python -c \"open('built', 'w')\"")
    assert (side.folder.parent / "built").exists()


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ({}, r"does not build: .*no compiler.* \(see .*prepare.log\)\. Build it with --prepare CMD"),
        ({"command": "no-such-tool --now"}, "cannot run 'no-such-tool'"),
        ({"command": "python -c 'raise SystemExit(\"bad flags\")'"}, "does not build: bad flags"),
    ],
    ids=["backend", "no-command", "command"],
)
def test_a_revision_that_does_not_build_is_one_line(project, tmp_path, monkeypatch, recipe, words):
    """With what the build said and where the rest is."""
    monkeypatch.delenv("PYTHONPATH")
    with pytest.raises(UsageError, match=words) as caught:
        prepared(project, project[2], tmp_path, **recipe)
    assert "\n" not in str(caught.value)


def test_a_folder_that_the_revision_has_not(project, tmp_path, monkeypatch):
    """The user stands in a folder that is newer."""
    folder = project[0]
    monkeypatch.delenv("PYTHONPATH")
    (folder / "new").mkdir()
    with pytest.raises(UsageError, match="base: there is no folder new in revision"):
        prepared(project, project[1], tmp_path, here="new", python=sys.executable)


def test_asking_for_pip_changes_nothing_in_this_process():
    """Setuptools has a finder that lets nobody use setuptools once pip was looked for."""
    ask = (
        "from pytest_llmperf.ab.overlay import install_command; install_command('python', dependencies=True); "
        "import setuptools, distutils.core; print(distutils.core.__file__)"
    )
    pytest.importorskip("setuptools")
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    assert "_distutils" in done.stdout


def test_a_side_knows_the_users_folder(project, tmp_path):
    """A model's folder that git ignores is there, and in no checkout."""
    folder, first, _ = project
    repository = _repository(folder, folder / "tests")
    builder = SideBuilder("base", first, Recipe(), repository=repository, place=tmp_path / "place")
    assert builder.side.environment["LLMPERF_USERS_FOLDER"] == str(folder / "tests")
