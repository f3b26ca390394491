"""Layouts of a repository in which a real slowdown must turn red, wherever the slower code is imported from."""

from __future__ import annotations

import pytest
from layout import FAST, PACKAGE, SETTINGS, SLOW, assert_red

GIT_FILES = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "protocol.file.allow", "GIT_CONFIG_VALUE_0": "always"}


def package(folder, name, *, inside=""):
    """Files of a package: in a folder ``src`` or beside its ``pyproject.toml``, which is imported by a finder."""
    return {f"{folder}/pyproject.toml": PACKAGE.format(name=name), f"{folder}/{inside}{name}/__init__.py": FAST}


def test_every_way_into_a_repository(layout):
    """Each side imports its own revision by all of them: packages that are installed editable, by path and by finder,
    or copied, a ``.pth`` file, ``PYTHONPATH``, a conftest and a submodule. Seven sources, each of them slower by two.
    """
    layout.make_environment()
    layout.variables |= GIT_FILES
    layout.project(
        "engine", "finder", "copied", "linked", "searched", "conftested", "submodule", folder="packages/engine"
    )
    layout.write(package("packages/finder", "finder"))
    layout.write(package("packages/copied", "copied", inside="src/"))
    layout.write({"lib/linked.py": FAST, "more/searched.py": FAST})
    layout.write({"packages/engine/tests/conftest.py": ""})
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
    assert_red(layout.ab(folder=layout.root / "packages" / "engine"))
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


def test_a_working_tree_with_changes_in_a_submodule(layout):
    """Not committed anywhere: neither in the submodule nor in the repository."""
    layout.make_environment()
    layout.variables |= GIT_FILES
    kernels = layout.folder / "kernels"
    layout.write({"kern.py": FAST}, kernels)
    layout.begin(kernels)
    settings = SETTINGS + 'pythonpath = ["kernels"]\n'
    layout.plain_project("kern", settings=settings)
    layout.git("init", "-q", "-b", "main", ".")
    layout.git("submodule", "--quiet", "add", str(kernels), "kernels")
    layout.begin()
    layout.write({"kernels/kern.py": SLOW})
    assert_red(layout.ab(base="HEAD"))
    assert layout.git("status", "--porcelain").strip() == "M kernels", "the user's repository is only read"


def test_a_partial_clone(layout):
    """Git checks out what it has, and exits with 0: what it lacks is fetched."""
    layout.make_environment()
    upstream = layout.folder / "upstream"
    root, layout.root = layout.root, upstream
    upstream.mkdir()
    layout.project()
    layout.begin()
    layout.branch({"src/engine/__init__.py": SLOW})
    layout.git("config", "uploadpack.allowFilter", "true")
    layout.git("config", "uploadpack.allowAnySHA1InWant", "true")
    layout.git("clone", "-q", "--filter=blob:none", "--branch=change", f"file://{upstream}", str(root))
    layout.root = root
    layout.install("-e", ".")
    assert_red(layout.ab(base="origin/main"))


def test_a_shallow_clone_with_changes(layout):
    """As CI systems clone; what is compared is on no branch."""
    layout.make_environment()
    upstream = layout.folder / "upstream"
    root, layout.root = layout.root, upstream
    upstream.mkdir()
    layout.project()
    layout.begin()
    layout.branch({"README": "more"})
    layout.git("clone", "-q", "--depth=1", "--no-single-branch", f"file://{upstream}", str(root))
    layout.root = root
    layout.install("-e", ".")
    layout.write({"src/engine/__init__.py": SLOW})
    assert_red(layout.ab(base="origin/main"))


def test_a_sparse_checkout_with_changes(layout):
    """Files that are not checked out are not deleted; what is compared is whole."""
    layout.make_environment()
    layout.write({"data/needed.py": FAST})
    layout.project("engine", "needed", settings=SETTINGS + 'pythonpath = ["data"]\n')
    layout.begin()
    layout.install("-e", ".")
    layout.git("sparse-checkout", "set", "src", "tests")
    layout.write({"src/engine/__init__.py": SLOW})
    assert_red(layout.ab(base="HEAD"))
    assert layout.more_operators == 2


def test_a_worktree_beside_the_one_that_is_installed(layout):
    """The editable install leads into the first working tree, where nothing has changed."""
    layout.make_environment()
    layout.project()
    layout.begin()
    layout.install("-e", ".")
    other = layout.folder / "other"
    layout.git("worktree", "add", "-q", "-b", "change", str(other))
    layout.write({"src/engine/__init__.py": SLOW}, other)
    layout.commit("slower", other)
    assert_red(layout.ab(folder=other))


def test_an_environment_in_the_repository(layout):
    """It is no part of the revision, although git does not ignore it."""
    layout.make_environment(layout.root / ".venv")
    (layout.environment / ".gitignore").unlink(missing_ok=True)
    layout.project()
    layout.write({".gitignore": ""})
    layout.git("init", "-q", "-b", "main", ".")
    layout.git("add", "src", "tests", "pyproject.toml")
    layout.git("commit", "-qm", "base")
    layout.install("-e", ".")
    layout.write({"src/engine/__init__.py": SLOW})
    layout.variables["LLMPERF_CACHE"] = str(layout.root / ".cache")
    assert_red(layout.ab(base="HEAD"))


def test_an_environment_that_sees_the_user_site(layout):
    """The sides see what the user's environment sees."""
    layout.make_environment()
    settings = layout.environment / "pyvenv.cfg"
    settings.write_text(settings.read_text().replace("packages = false", "packages = true"))
    layout.variables["PYTHONUSERBASE"] = str(layout.folder / "user")
    where = layout.run(layout.python, "-c", "import site; print(site.getusersitepackages())").text.strip()
    layout.write({"helper.py": FAST}, layout.folder / where)
    layout.project("engine", "helper")
    layout.begin()
    layout.install("-e", ".")
    layout.branch({"src/engine/__init__.py": SLOW})
    assert_red(layout.ab())
    assert layout.more_operators == 2


def test_a_package_that_moved(layout):
    """Base has it in another folder."""
    layout.make_environment()
    layout.plain_project("engine")
    layout.write({"old/pyproject.toml": PACKAGE.format(name="engine"), "old/src/engine/__init__.py": FAST})
    layout.begin()
    layout.git("mv", "old", "new")
    layout.branch({"new/src/engine/__init__.py": SLOW})
    layout.install("-e", "new")
    assert_red(layout.ab())


@pytest.mark.parametrize("where", ["clone", "hook"])
def test_what_leads_to_another_clone(layout, where):
    """An editable install of a clone elsewhere, and the variables that git sets for a hook: neither is this one."""
    layout.make_environment()
    layout.project()
    layout.begin()
    layout.branch({"src/engine/__init__.py": SLOW})
    other = layout.folder / "other"
    layout.git("clone", "-q", "--branch=main", str(layout.root), str(other))
    layout.install("-e", str(other if where == "clone" else layout.root))
    if where == "hook":
        layout.variables |= {
            "GIT_DIR": str(layout.root / ".git"),
            "GIT_INDEX_FILE": str(layout.root / ".git" / "index"),
        }
    assert_red(layout.ab())
    layout.variables.clear()
    assert layout.git("symbolic-ref", "HEAD") == "refs/heads/change", "the user's repository is only read"


def test_a_command_that_prepares(layout):
    """It installs into the side's environment; what is installed editable in the user's does not shine through."""
    layout.make_environment()
    layout.project()
    layout.begin()
    layout.install("-e", ".")
    layout.branch({"src/engine/__init__.py": SLOW})
    assert_red(layout.ab("--prepare", "pip install -q --no-deps --no-build-isolation -e ."))
    shown = layout.run(layout.python, "-c", "import engine; print(engine.__file__)").text
    assert shown.startswith(str(layout.root)), "the user's environment is only read"
