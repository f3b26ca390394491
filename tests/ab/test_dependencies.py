"""What files ask for, and what of a difference between two revisions an environment lacks."""

from __future__ import annotations

import json
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from pytest_llmperf.ab.dependencies import (
    Dependencies,
    Installed,
    _specifier,
    dependencies_of,
    differences,
    metadata_wishes,
)
from pytest_llmperf.errors import UsageError

ROOT = [PurePosixPath()]
UV = """
[[package]]
name = "engine"
version = "1"
source = { editable = "." }
[[package]]
name = "helper"
version = "{version}"
source = { registry = "index" }
[[package]]
name = "forked"
version = "{version}"
source = { git = "https://host/forked?rev=main#{version}abc" }
"""
POETRY = """
[[package]]
name = "Helper"
version = "{version}"
[[package]]
name = "forked"
version = "1"
[package.source]
type = "git"
url = "https://host/forked"
resolved_reference = "{version}abc"
"""
PYPROJECT = """
[project]
dependencies = ["helper=={version}", "pytest"]
[project.optional-dependencies]
fast = ["forked=={version}"]
[dependency-groups]
test = ["tool=={version}", {include-group = "other"}]
"""
OLD_POETRY = """
[tool.poetry.dependencies]
python = "^3.11"
helper = "{version}"
forked = {version = "^{version}", optional = true}
[tool.poetry.group.test.dependencies]
tool = "~{version}"
"""
REQUIREMENTS = """
# a comment
--extra-index-url https://index
helper[fast] == {version} \\
    --hash=sha256:00
-e .
./packages/engine
git+https://host/forked@{version}abc#egg=forked
"""
PIPFILE = json.dumps(
    {"default": {"helper": {"version": "=={version}"}}, "develop": {"tool": {"version": "=={version}"}}}
)


def asked(tmp_path, name, text):
    """Names and texts of the wishes of one file."""
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(text)
    found = dependencies_of(tmp_path, [name], ROOT)
    return found, {wish.name: wish.texts for wish in found.wishes}


def two(tmp_path, name, text):
    """What base (1.0) asks for otherwise than head (2.0)."""
    revisions = [asked(tmp_path / version, name, text.replace("{version}", version))[0] for version in ("1.0", "2.0")]
    return differences(*revisions)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("requirements.txt", REQUIREMENTS, {"helper": "helper[fast] == 1.0", "forked": "forked @ git+https://host/forked@1.0abc"}),
        ("requirements/perf.txt", "helper==1.0", {"helper": "helper==1.0"}),
        ("dev-requirements.in", "helper==1.0", {"helper": "helper==1.0"}),
        ("constraints.txt", "helper==1.0", {"helper": "helper==1.0"}),
        ("pyproject.toml", PYPROJECT, {"pytest": "pytest"} | {n: f"{n}==1.0" for n in ("helper", "forked", "tool")}),
        ("pyproject.toml", OLD_POETRY, {"helper": "helper==1.0", "forked": "forked>=1.0,<2", "tool": "tool>=1.0,<1.1"}),
        ("setup.cfg", "[options]\ninstall_requires =\n  helper==1.0\n", {"helper": "helper==1.0"}),
        ("uv.lock", UV, {"helper": "helper==1.0", "forked": "forked @ git+https://host/forked@1.0abc"}),
        ("poetry.lock", POETRY, {"helper": "helper==1.0", "forked": "forked @ git+https://host/forked@1.0abc"}),
        ("pdm.lock", UV, {"helper": "helper==1.0", "forked": "forked @ git+https://host/forked@1.0abc"}),
        ("Pipfile.lock", PIPFILE, {"helper": "helper==1.0", "tool": "tool==1.0"}),
        ("README.txt", "helper==1.0", {}),
        ("web/requirements.txt", "helper==1.0", {}),
        ("tests/requirements.txt", "helper==1.0", {"helper": "helper==1.0"}),
    ],
)  # fmt: skip
def test_what_each_kind_of_file_asks_for(tmp_path, name, text, expected):
    """Paths into the repository are no dependencies, and what lies in other folders is other projects'."""
    _, found = asked(tmp_path, name, text.replace("{version}", "1.0"))
    assert found == {wanted: (text,) for wanted, text in expected.items()}


@pytest.mark.parametrize("name", ["environment.yml", "conda-lock.yml", "pixi.lock"])
def test_what_pip_cannot_install_is_known_to_differ(tmp_path, name):
    """Comments do not count."""
    assert two(tmp_path, name, "helper={version} # {version}").unreadable == [name]
    assert two(tmp_path, name, "helper=1 # {version}").unreadable == []


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [("uv.lock", "[[package", "uv.lock: cannot read"), ("Pipfile.lock", "{", "Pipfile.lock: cannot read"),
     ("pyproject.toml", "[project]\ndependencies = 3", "pyproject.toml: cannot read")],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, text, words):
    """In one line."""
    with pytest.raises(UsageError, match=words):
        asked(tmp_path, name, text)


@pytest.mark.parametrize(
    ("file", "installed", "unmet"),
    [
        ("requirements.txt", {"helper": Installed("2.0")}, True),
        ("requirements.txt", {"helper": Installed("1.0")}, False),
        ("requirements.txt", {}, True),
        ("requirements-docs.txt", {}, False),
        ("requirements-docs.txt", {"helper": Installed("2.0")}, True),
        ("constraints.txt", {}, False),
        ("requirements.txt", {"helper": Installed("no version")}, True),
    ],
)
def test_what_an_environment_lacks(tmp_path, file, installed, unmet):
    """A version that nobody installed matters only if the code does not run without it."""
    found = two(tmp_path, file, "helper=={version}").unmet(installed)
    assert [wish.texts for wish in found] == ([("helper==1.0",)] if unmet else [])


def test_a_dependency_that_only_one_revision_has(tmp_path):
    """Base is given what head has dropped; a marker of another system is not for us."""
    base, _ = asked(tmp_path / "base", "requirements-perf.txt", "dropped\nother; sys_platform == 'plan9'")
    head, _ = asked(tmp_path / "head", "requirements-perf.txt", "")
    assert [wish.name for wish in differences(base, head).unmet({})] == ["dropped"]
    assert differences(head, base).unmet({}) == []


def test_one_of_several_locked_versions_will_do(tmp_path):
    """A lock for several systems has a version for each."""
    package = '[[package]]\nname = "helper"\nversion = "{}"\nsource = {{ registry = "index" }}\n'
    found, _ = asked(tmp_path, "uv.lock", package.format("1.0") + package.format("1.1"))
    differing = differences(found, Dependencies())
    assert differing.unmet({"helper": Installed("1.1")}) == []
    assert differing.unmet({"helper": Installed("1.2")}) == found.wishes


@pytest.mark.parametrize(
    ("source", "unmet"), [("https://host/forked@1.0abc", False), ("https://host/forked@2.0abc", True), ("", True)]
)
def test_a_dependency_from_a_repository_is_met_by_its_commit(tmp_path, source, unmet):
    """Its version tells nothing."""
    differing = two(tmp_path, "uv.lock", UV)
    installed = {"forked": Installed("1", source), "helper": Installed("1.0")}
    assert [wish.name for wish in differing.unmet(installed)] == (["forked"] if unmet else [])


def test_a_constraint_that_cannot_be_expressed_is_never_met(tmp_path):
    """It is refused when it cannot be installed."""
    differing = two(tmp_path, "pyproject.toml", OLD_POETRY.replace('"{version}"', '"{version} || 3"', 1))
    assert "helper" in [wish.name for wish in differing.unmet({"helper": Installed("1.0")})]


def test_what_a_built_distribution_needs():
    """Of an extra only where it is installed."""
    found = metadata_wishes("engine", ["helper==1.0", 'forked==1.0; extra == "fast"', 'other; sys_platform == "plan9"'])
    differing = differences(Dependencies(found), Dependencies())
    assert [wish.name for wish in differing.unmet({})] == ["helper"]
    assert [wish.name for wish in differing.unmet({"forked": Installed("2.0")})] == ["helper", "forked"]


@given(st.lists(st.integers(0, 30), min_size=1, max_size=3).filter(any))
def test_poetrys_caret_allows_what_keeps_the_first_number_that_is_not_zero(numbers):
    """The definition in Poetry's documentation."""
    allowed = SpecifierSet(_specifier("^" + ".".join(map(str, numbers))))
    first = next(index for index, number in enumerate(numbers) if number)
    assert Version(".".join(map(str, numbers))) in allowed
    assert Version(".".join(map(str, [*numbers[:first], numbers[first], 99]))) in allowed or first < len(numbers) - 1
    assert Version(".".join(map(str, [*numbers[:first], numbers[first] + 1]))) not in allowed
