"""Repository layouts in which a real slowdown must fail, wherever the slower code is imported from."""

from __future__ import annotations

from layout import FAST, PACKAGE, SETTINGS, SLOW, assert_red

GIT_FILES = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "protocol.file.allow", "GIT_CONFIG_VALUE_0": "always"}


FAILS_ON_BASE = """
import engine
import pytest

@pytest.mark.parametrize("llm", ["fp32"], indirect=True)
def test_later(llm, llmperf):
    assert engine.TIMES == 3
    llmperf.generate(llm, batch_size=2, input_tokens=8, output_tokens=4)
"""


def package(folder, name, *, inside=""):
    """Files of a package: below ``src``, or beside its ``pyproject.toml``, which an import finder serves."""
    return {f"{folder}/pyproject.toml": PACKAGE.format(name=name), f"{folder}/{inside}{name}/__init__.py": FAST}


def test_every_way_into_a_repository(layout):
    """Each side imports its own revision, whichever way a source is imported.

    The sources are editable packages (by path and by import finder), a copied package, a ``.pth`` file, ``PYTHONPATH``,
    a conftest and a submodule; each of the seven is slower by two operators. A test that fails only on base is new:
    neither a pass nor a failure. Each process starts as a user's does.
    """
    layout.make_environment()
    layout.variables |= GIT_FILES | {"PLAIN_PYTHON": "1"}
    layout.project(
        "engine", "finder", "copied", "linked", "searched", "conftested", "submodule", folder="packages/engine"
    )
    layout.write(package("packages/finder", "finder"))
    layout.write(package("packages/copied", "copied", inside="src/"))
    layout.write({"lib/linked.py": FAST, "more/searched.py": FAST})
    layout.write(
        {"packages/engine/tests/conftest.py": "", "packages/engine/tests/test_fails_on_base.py": FAILS_ON_BASE}
    )
    layout.write({"packages/engine/tests/conftested.py": FAST})
    kernels = layout.folder / "kernels"
    layout.write({"submodule.py": FAST}, kernels)
    layout.begin(kernels)
    layout.git("init", "-q", "-b", "main", ".")
    layout.git("submodule", "--quiet", "add", str(kernels), "third_party/kernels")
    layout.begin()
    layout.install("-e", "packages/engine")
    layout.install("-e", "packages/finder")
    layout.install("packages/copied")
    (layout.site / "by_hand.pth").write_text(f"{layout.root / 'lib'}\n")
    layout.variables["PYTHONPATH"] = f"{layout.root / 'more'}:{layout.root / 'third_party' / 'kernels'}"
    layout.write({"submodule.py": SLOW}, layout.root / "third_party" / "kernels")
    layout.commit("slower", layout.root / "third_party" / "kernels")
    slow = ["engine/src/engine/__init__.py", "finder/finder/__init__.py", "copied/src/copied/__init__.py"]
    slow = [
        *(f"packages/{file}" for file in [*slow, "engine/tests/conftested.py"]),
        "lib/linked.py",
        "more/searched.py",
    ]
    layout.branch(dict.fromkeys(slow, SLOW))
    result = layout.ab(folder=layout.root / "packages" / "engine")
    assert_red(result)
    assert result.last_line.endswith("1 of 2 gating cells decided: 1 regressed, 1 new")
    assert layout.more_operators == 14
    sides = layout.verdicts.sides
    assert {name: side.commit for name, side in sides.items()} == {
        "base": layout.git("rev-parse", "main"), "head": layout.git("rev-parse", "HEAD"),
    }  # fmt: skip
    for side in sides.values():
        places = {name: file.partition("/")[0] for name, file in side.packages.items()}
        expected = dict.fromkeys(["engine", "finder", "copied"], "environment")
        expected |= dict.fromkeys(["linked", "searched", "conftested", "submodule"], "checkout")
        assert places.items() >= expected.items()


def test_a_sparse_working_tree_with_changes_in_a_submodule(layout):
    """Changes of submodule and repository are uncommitted; files outside the sparse checkout are not deleted."""
    layout.make_environment()
    layout.variables |= GIT_FILES
    kernels = layout.folder / "kernels"
    layout.write({"kern.py": FAST}, kernels)
    layout.begin(kernels)
    layout.plain_project("kern", "own", "needed", settings=SETTINGS + 'pythonpath = ["kernels", "lib", "data"]\n')
    layout.write({"data/needed.py": FAST, "lib/own.py": FAST})
    layout.git("init", "-q", "-b", "main", ".")
    layout.git("submodule", "--quiet", "add", str(kernels), "kernels")
    layout.begin()
    layout.git("sparse-checkout", "set", "lib", "tests")
    layout.write({"kernels/kern.py": SLOW, "lib/own.py": SLOW})
    assert_red(layout.ab(base="HEAD"))
    assert layout.more_operators == 4
    status = layout.git("status", "--porcelain").split()
    assert status == ["M", "kernels", "M", "lib/own.py"], "the user's repository is only read"


def test_a_partial_clone(layout):
    """``git`` exits with 0 although objects are missing: they are fetched."""
    layout.make_environment()
    layout.project()
    layout.begin()
    layout.branch({"src/engine/__init__.py": SLOW})
    layout.git("config", "uploadpack.allowFilter", "true")
    layout.git("config", "uploadpack.allowAnySHA1InWant", "true")
    layout.clone("--filter=blob:none", "--branch=change")
    layout.install("-e", ".")
    assert_red(layout.ab(base="origin/main"))


def test_a_shallow_clone_with_changes(layout):
    """CI systems clone like this; the compared commit is on no branch."""
    layout.make_environment()
    layout.project()
    layout.begin()
    layout.branch({"README": "more"})
    layout.clone("--depth=1", "--no-single-branch")
    layout.install("-e", ".")
    layout.write({"src/engine/__init__.py": SLOW})
    assert_red(layout.ab(base="origin/main"))


def test_a_worktree_beside_what_is_installed(layout):
    """Editable installs point to the first working tree and to another clone, both unchanged."""
    layout.make_environment()
    layout.project("engine", "finder")
    layout.write(package("finder", "finder"))
    layout.begin()
    clone, other = layout.folder / "clone", layout.folder / "other"
    layout.git("clone", "-q", str(layout.root), str(clone))
    layout.install("-e", ".")
    layout.install("-e", str(clone / "finder"))
    layout.git("worktree", "add", "-q", "-b", "change", str(other))
    layout.write({"src/engine/__init__.py": SLOW, "finder/finder/__init__.py": SLOW}, other)
    layout.commit("slower", other)
    assert_red(layout.ab(folder=other))
    assert layout.more_operators == 4


def test_an_environment_in_the_repository_that_sees_the_user_site(layout):
    """It is not part of the revision, although git does not ignore it; both sides see the user site."""
    layout.make_environment(layout.root / ".venv")
    (layout.environment / ".gitignore").unlink(missing_ok=True)
    settings = layout.environment / "pyvenv.cfg"
    settings.write_text(settings.read_text().replace("packages = false", "packages = true"))
    layout.variables |= {"PYTHONUSERBASE": str(layout.folder / "user"), "LLMPERF_CACHE": str(layout.root / ".cache")}
    where = layout.run(layout.python, "-c", "import site; print(site.getusersitepackages())").text.strip()
    layout.write({"helper.py": FAST}, layout.folder / where)
    layout.project("engine", "helper")
    layout.write({".gitignore": ""})
    layout.git("init", "-q", "-b", "main", ".")
    layout.git("add", "src", "tests", "pyproject.toml")
    layout.git("commit", "-qm", "base")
    layout.install("-e", ".")
    layout.write({"src/engine/__init__.py": SLOW})
    assert_red(layout.ab(base="HEAD"))
    assert layout.more_operators == 2


def test_a_package_that_moved_in_a_hook(layout):
    """Base has it in another folder; git's variables for hooks point to the user's repository."""
    layout.make_environment()
    layout.plain_project("engine")
    layout.write({"old/pyproject.toml": PACKAGE.format(name="engine"), "old/src/engine/__init__.py": FAST})
    layout.begin()
    layout.git("mv", "old", "new")
    layout.branch({"new/src/engine/__init__.py": SLOW})
    layout.install("-e", "new")
    layout.variables |= {"GIT_DIR": str(layout.root / ".git"), "GIT_INDEX_FILE": str(layout.root / ".git" / "index")}
    assert_red(layout.ab())
    layout.variables.clear()
    assert layout.git("symbolic-ref", "HEAD") == "refs/heads/change", "the user's repository is only read"


def test_a_command_that_prepares(engine):
    """It installs into the side's environment; editable installs of the user's environment are not imported."""
    assert_red(engine.ab("--prepare", "pip install -q --no-deps --no-build-isolation -e ."))
    shown = engine.run(engine.python, "-c", "import engine; print(engine.__file__)").text
    assert shown.startswith(str(engine.root)), "the user's environment is only read"
