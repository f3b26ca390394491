"""Invalid comparisons are refused in one line, before or right after the first process; none of them passes."""

from __future__ import annotations

import subprocess

import pytest
from layout import FAST, SETTINGS, SLOW, assert_red, assert_refused


@pytest.mark.parametrize("how", ["pythonpath", "conftest", "library"])
def test_code_of_the_users_checkout_on_both_sides(layout, how):
    """An absolute path makes both sides import the same file; the error names module and file."""
    layout.make_environment()
    layout.plain_project("engine")
    layout.write({"lib/engine.py": FAST})
    folder = layout.root / "lib"
    if how == "pythonpath":
        layout.plain_project("engine", settings=f'{SETTINGS}pythonpath = ["{folder}"]\n')
    elif how == "conftest":
        layout.write({"tests/conftest.py": f"import sys; sys.path.insert(0, {str(folder)!r})"})
    else:
        subprocess.run(["gcc", "-shared", "-o", folder / "native.so", "-x", "c", "/dev/null"], check=True)
        load = f"import ctypes; ctypes.CDLL({str(folder / 'native.so')!r})"
        layout.write({"tests/conftest.py": load, "tests/engine.py": FAST})
    layout.begin()
    layout.branch({"lib/engine.py": SLOW, "tests/engine.py": SLOW} if how == "library" else {"lib/engine.py": SLOW})
    name = "native.so" if how == "library" else "engine"
    assert_refused(layout.ab(), f"{name} was imported from {folder}", "--python-base and --python-head")


def test_one_environment_that_was_brought_for_both_sides(layout):
    """It has a copy of the package installed, so both sides would run the same code."""
    layout.make_environment()
    layout.project()
    layout.begin()
    layout.install(".")
    layout.branch({"src/engine/__init__.py": SLOW})
    same = (f"--python-base={layout.python}", f"--python-head={layout.python}")
    assert_refused(layout.ab(*same), "base and head imported engine from the same file")


def test_a_base_that_cannot_be_read(layout):
    """The exit code is not 1, which would mean a regression."""
    layout.make_environment()
    layout.project()
    layout.write({"pyproject.toml": "garbage ["})
    layout.begin()
    layout.git("switch", "-qc", "change")
    layout.project()
    layout.commit("mended")
    layout.install("-e", ".")
    assert_refused(layout.ab(), "base (", "pyproject.toml: ")


def test_a_base_that_raises(layout):
    """Its import fails."""
    layout.make_environment()
    layout.project()
    layout.write({"src/engine/__init__.py": "raise RuntimeError('broken')\n"})
    layout.begin()
    layout.install("-e", ".")
    layout.branch({"src/engine/__init__.py": FAST})
    assert_refused(
        layout.ab(), "llmperf: base: pytest ended with exit code 2: ERROR tests/test_perf.py - RuntimeError: broken"
    )


@pytest.mark.parametrize(
    ("variable", "value"),
    [("GITHUB_BASE_REF", "release"), ("SYSTEM_PULLREQUEST_TARGETBRANCH", "refs/heads/release")],
)
def test_a_target_branch_that_was_not_fetched(engine, variable, value):
    """The merge base with another branch would give another comparison."""
    engine.variables |= {"CI": "true", variable: value}
    engine.git("remote", "add", "origin", "/nowhere")
    assert_refused(
        engine.gate(), f"{variable}=release: git does not have origin/release",
        "git fetch origin +refs/heads/release:refs/remotes/origin/release",
    )  # fmt: skip


def test_a_shallow_clone_without_the_base(engine):
    """The error shows the command that fetches it."""
    base = engine.git("rev-parse", "main")
    engine.clone("--depth=1", "--branch=change")
    assert_refused(engine.ab(base=base), f"git fetch --depth=1 origin {base}")
    assert_refused(engine.gate("HEAD"), "git fetch --deepen=1 origin")


def test_a_repository_that_git_does_not_trust(engine):
    """It is an error, not a recorded run without a commit."""
    config = engine.folder / "gitconfig"
    config.touch()
    engine.variables |= {"GIT_TEST_ASSUME_DIFFERENT_OWNER": "1", "GIT_CONFIG_GLOBAL": str(config)}
    result = engine.llmperf("record", "--runs=1", "tests")
    assert result.code == 4
    assert f"run git config --global --add safe.directory {engine.root}" in result.text
    assert not list(engine.root.glob("baselines/*.json"))


def test_counted_metrics_without_a_baseline_on_the_branch_itself(engine):
    """The gate compares with the first parent, in one block."""
    engine.variables["GITHUB_BASE_REF"] = "main"
    engine.git("update-ref", "refs/remotes/origin/main", "HEAD")
    result = engine.gate()
    assert_red(result)
    assert "is on origin/main: comparing with its first parent" in result.text
    assert "measured 2 blocks of two fresh processes" in result.text
