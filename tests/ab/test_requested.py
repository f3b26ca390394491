"""Requirements that the user asks for: which are valid, and what of them an environment lacks."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import pytest
from packaging.version import Version
from repository import commit, git
from wheels import write_wheel

from pytest_llmperf.ab.compare import PairedComparison, plan_comparison, prepare_comparison
from pytest_llmperf.ab.dependencies import Installed
from pytest_llmperf.ab.requested import Requested, parse_requested, shown
from pytest_llmperf.ab.side import Recipe
from pytest_llmperf.cli import main
from pytest_llmperf.errors import UsageError

PYPROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\n[project]\nname = "engine"\n'
COMMIT = "0123456789" * 4


@dataclass
class PlayedEnvironment:
    """Stands for `Environment`: versions, requirements, and what was installed for the side."""

    versions: dict[str, str]
    needs: dict[str, list[str]] = field(default_factory=dict)
    own: frozenset[str] = frozenset()
    sources: dict[str, str] = field(default_factory=dict)

    @property
    def installed(self):
        return {name: Installed(version, self.sources.get(name, "")) for name, version in self.versions.items()}

    def requires(self, name):
        return self.needs.get(name, [])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--head-with", "dep=2"], "--head-with 'dep=2': expected a requirement such as 'transformers==5.17.0'"),
        (["--head-with", "./dep-2.0-py3-none-any.whl"], "'torch @ file:///PATH/torch.whl' for a file"),
        (["--head-with", "dep==2\n--index-url x"], r"--head-with 'dep==2\n--index-url x': expected a requirement"),
        (["--head-with", "dep @ file:///no.whl"], "expected an existing wheel or archive at /no.whl"),
        (["--head-with", "dep @ file:///"], "expected an existing wheel or archive at /"),
        (["--head-with", "dep @ https://host/dep.whl"], "what another address holds may change"),
        (["--head-with", "dep @ git+https://host/dep@main"], "with all 40 digits"),
        (["--head-with", "dep==2; sys_platform == 'plan9'"], "its marker does not apply to this system"),
        (["--head-with", "dep>=1", "--head-with", "Dep<2"], "--head-with: dep is named twice; write one"),
        (["--base-with", "pytest_llmperf==0.1"], "pytest-llmperf measures both sides"),
        (["--base-with", "dep", "--python-base", "python"], "--base-with and --python-base: nothing is installed"),
    ],
)
def test_what_is_refused_at_once(capsys, options, words):
    """In one line, before anything is built."""
    assert main(["ab", "HEAD", "HEAD", *options]) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A repository with a package, and a folder as the only index."""
    index, folder = tmp_path / "index", tmp_path / "repository"
    index.mkdir()
    folder.mkdir()
    for version in ("1.0", "2.0", "3.0rc1"):
        write_wheel(index, "tinydep", version, "")
    write_wheel(index, "torn", "1.0", "", ["tinydep==9"])
    write_wheel(index, "user", "1.0", "", ["tinydep<2"])
    git(folder, "init", "-q", "-b", "main")
    commit(folder, {"pyproject.toml": PYPROJECT, "tests/test_a.py": ""})
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("LLMPERF_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def refusal(project, capsys):
    """Returns a function that compares HEAD with itself, and returns the line that refuses it."""

    def compare(*options):
        assert main(["ab", "HEAD", "HEAD", *options]) == 4
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return compare


@pytest.mark.parametrize(
    ("requirement", "words"),
    [
        ("tinydep==2.5", "cannot install tinydep==2.5: pip lists no such version; the nearest are 1.0, 2.0, 3.0rc1"),
        ("unknown", "cannot install unknown: unknown: pip lists no version: No matching distribution found"),
        ("torn", "cannot install torn: ERROR: No matching distribution found for tinydep==9"),
        ("engine==1", "head cannot run with engine==1: engine is a package of this repository, which each side builds"),
    ],
)
def test_what_cannot_be_installed(refusal, requirement, words):
    """The nearest listed versions are shown; a package that requires what nobody has is named with the reason."""
    line = refusal("--prepare", "true", "--head-with", requirement)
    assert words in line
    assert "head" in line


def test_a_command_that_undoes_what_was_asked_for(refusal):
    """``--prepare`` runs afterwards, so that it builds against the requested versions; these must still be there."""
    command = "python -m pip install -q --no-deps tinydep==2"
    line = refusal("--prepare", command, "--base-with", "tinydep==2", "--head-with", "tinydep==1")
    assert "needs tinydep==1, and the environment has 2.0" in line


def test_what_is_told_of_what_was_installed(project):
    """Distributions that require another version, and sides that are equal after all."""
    install = "python -m pip install -q --no-deps user"
    base, head = (Recipe(command=install, requirements=(text,)) for text in ("tinydep==2", "tinydep<3,>=2"))
    wanted = PairedComparison(base="HEAD", head="HEAD", arguments=[], base_recipe=base, head_recipe=head)
    _, notes = prepare_comparison(plan_comparison(wanted, here=project))
    assert notes == [
        "base: user 1.0 requires tinydep<2, and runs with tinydep 2.0",
        "head: user 1.0 requires tinydep<2, and runs with tinydep 2.0",
        "base and head run with the same version of every package, whatever was asked for on each side",
    ]


def test_a_gate_has_no_such_options(capsys):
    """Its first stage runs in the installed environment."""
    assert main(["gate", "--head-with", "dep==2"]) == 4
    assert "unexpected '--head-with'" in capsys.readouterr().err


def test_a_file_is_identified_by_its_content(tmp_path):
    """A build at the same path is another requirement; spaces are escaped; a commit stays as it is."""
    wheel = tmp_path / "a build" / "dep-1-py3-none-any.whl"
    wheel.parent.mkdir()
    found = []
    for content in (b"first", b"second"):
        wheel.write_bytes(content)
        (one,) = parse_requested([f"dep @ {wheel.as_uri()}"], option="--head-with")
        assert one.endswith(f"/a%20build/dep-1-py3-none-any.whl#sha256={hashlib.sha256(content).hexdigest()}")
        assert parse_requested([one], option="--head-with") == (one,)
        found.append(one)
    assert found[0] != found[1]
    assert shown(found[0]) == shown(found[1]) == f"dep @ {wheel.as_uri()}"
    fixed = f"dep @ git+https://host/dep@{COMMIT}"
    assert parse_requested([fixed], option="--head-with") == (fixed,)


def test_the_environment_is_part_of_what_is_compared(project):
    """The order of the options is not; other versions of the same tree are no A/A."""

    def plan(*texts):
        head = Recipe(requirements=parse_requested(texts, option="--head-with"))
        wanted = PairedComparison(base="HEAD", head="HEAD", arguments=[], base_recipe=Recipe(), head_recipe=head)
        return plan_comparison(wanted, here=project)

    assert plan().is_null
    assert not plan("dep==1").is_null
    folders = [plan(*texts).folder for texts in ((), ("dep==1",), ("dep==2",), ("dep==1", "a"), ("a", "dep ==1"))]
    assert len(set(folders)) == 4
    assert folders[3] == folders[4]


def missing(texts, environment):
    return [(str(one), one.found) for one in Requested(texts).missing(environment)]


def test_what_an_environment_lacks():
    """What is asked for, and what the distributions need that were installed for it; the user's own are not asked."""
    environment = PlayedEnvironment(
        {"asked": "2.0", "inner": "1.0", "old": "1.0"},
        {"asked": ["inner>=2", "none; sys_platform == 'plan9'", "extra; extra == 'fast'", "old"], "old": ["broken"]},
        own=frozenset({"asked"}),
    )
    assert missing(["asked==2"], environment) == [("inner>=2, which asked 2.0 requires", "1.0")]
    assert missing(["asked==3", "other"], environment) == [("asked==3", "2.0"), ("other", "")]
    assert missing(["old==1"], environment) == []
    assert missing(["old[fast]==1"], environment) == [("broken, which old 1.0 requires", "")]
    assert ('extra; extra == "fast", which asked 2.0 requires', "") in missing(["asked[fast]"], environment)


def test_requirements_in_a_circle_end():
    """Two packages may require each other."""
    environment = PlayedEnvironment({"a": "1", "b": "1"}, {"a": ["b"], "b": ["a", "c"]}, own=frozenset({"a", "b"}))
    assert missing(["a"], environment) == [("c, which b 1 requires", "")]


def test_a_file_must_have_been_installed_for_this_side():
    """The user's environment may have an earlier build from the same path."""
    file = "dep @ file:///dep.whl#sha256=00"
    environment = PlayedEnvironment({"dep": "1"}, sources={"dep": "file:///dep.whl"})
    assert missing([file], environment) == [("dep @ file:///dep.whl", "")]
    environment.own = frozenset({"dep"})
    assert missing([file], environment) == []


def test_distributions_that_require_another_version_are_named():
    """They are not refused: many upper bounds are cautious."""
    environment = PlayedEnvironment(
        {"dep": "2.0", "user": "1.0", "content": "1.0"},
        {"user": ["dep<2"], "content": ["dep>=1", "user>=3"]},
        own=frozenset({"dep"}),
    )
    assert [*Requested(["dep==2"]).broken(environment)] == ["user 1.0 requires dep<2, and runs with dep 2.0"]


def test_a_recipe_for_one_more_version():
    """As a bisection over releases needs it."""
    recipe = Recipe(command="make", requirements=("a==1",))
    assert recipe.with_package("dep", Version("5.17"), option="--package") == Recipe(
        command="make", requirements=("a==1", "dep==5.17")
    )
    with pytest.raises(UsageError, match="--package: a is named twice"):
        recipe.with_package("a", Version("2"), option="--package")
