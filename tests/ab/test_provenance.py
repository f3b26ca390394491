"""From where a process imported is found out in the process itself, whatever led there."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import types

import pytest

from pytest_llmperf.ab.blocks import _proof, _refuse_shared
from pytest_llmperf.ab.side import Side
from pytest_llmperf.errors import UsageError
from pytest_llmperf.storage.provenance import (
    SIDE_VARIABLE,
    Imported,
    ImportReporter,
    SidePlaces,
    reporter_of,
    site_folders,
)


@pytest.fixture
def places(tmp_path):
    """A repository with an environment of its own in it, and a side that lies in it as well."""
    own = tmp_path / "repository" / "cache" / "comparison" / "head"
    own.mkdir(parents=True)
    return SidePlaces(
        repository=[tmp_path / "repository"], own=own, comparison=own.parent,
        sites=[tmp_path / "repository" / ".venv" / "site-packages"], copies=["copied", "company.copied"],
        shares_environment=True,
    )  # fmt: skip


@pytest.fixture
def imported(monkeypatch):
    """Returns a function that puts a module of that file among those that are imported."""

    def put(name, file, **more):
        module = types.ModuleType(name)
        vars(module).update({"__file__": file and str(file)} | more)
        monkeypatch.setitem(sys.modules, name, module)

    return put


def report(places, tmp_path):
    reporter = ImportReporter(places, tmp_path / "report.json", {"t::b", "t::a"})
    reporter.pytest_sessionfinish()
    return Imported.read(tmp_path / "report.json")


def test_modules_of_the_side_and_of_the_environment_are_not_foreign(places, imported, tmp_path):
    """An environment may lie in the repository, and a side too."""
    imported("engine", places.own / "checkout" / "engine.py")
    imported("engine.inner", places.own / "checkout" / "inner.py")
    imported("installed", places.sites[0] / "installed.py")
    imported("elsewhere", tmp_path / "elsewhere.py")
    imported("none", None)
    found = report(places, tmp_path)
    assert found.foreign == {}
    assert found.packages == {"engine": str(places.own / "checkout" / "engine.py")}
    assert found.collected == ["t::a", "t::b"]


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("users", "repository/src/users.py"),
        ("base", "repository/cache/comparison/base/checkout/base.py"),
        ("copied.inner", "repository/.venv/site-packages/copied/inner.py"),
        ("company.copied", "repository/.venv/site-packages/company/copied/__init__.py"),
    ],
)
def test_other_code_of_the_repository_is_foreign(places, imported, tmp_path, name, where):
    """The user's checkout, the other side, and a copy that the shared environment holds."""
    imported(name, tmp_path / where)
    assert report(places, tmp_path).foreign == {name: str(tmp_path / where)}


def test_another_member_of_a_namespace_is_not_foreign(places, imported, tmp_path):
    """Only one of them is the repository's."""
    imported("company.other", places.sites[0] / "company" / "other.py")
    imported("copiedtoo", places.sites[0] / "copiedtoo.py")
    assert report(places, tmp_path).foreign == {}


def test_a_copy_in_an_environment_that_somebody_brought_is_that_sides(places, imported, tmp_path):
    """The user vouches for it; it is told, so that two sides with the same one are found out."""
    imported("copied", places.sites[0] / "copied" / "__init__.py")
    found = report(places.model_copy(update={"shares_environment": False}), tmp_path)
    assert (found.foreign, list(found.packages)) == ({}, ["copied"])


def test_links_and_namespace_packages_lead_to_the_repository(places, imported, tmp_path):
    """What counts is where a file really lies."""
    source = tmp_path / "repository" / "src"
    source.mkdir()
    (tmp_path / "linked").symlink_to(source)
    imported("linked", tmp_path / "linked" / "module.py")
    imported("company", None, __path__=[str(source / "company")])
    assert sorted(report(places, tmp_path).foreign) == ["company", "linked"]


def test_a_module_that_a_test_removes_is_not_lost(places, imported, tmp_path):
    """Each test is looked at when it ends."""
    imported("gone", tmp_path / "repository" / "gone.py")
    reporter = ImportReporter(places, tmp_path / "report.json", set())
    reporter.pytest_runtest_teardown()
    del sys.modules["gone"]
    reporter.pytest_sessionfinish()
    assert list(Imported.read(tmp_path / "report.json").foreign) == ["gone"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells which files are mapped")
def test_native_code_is_found_however_it_was_loaded(places, tmp_path):
    """An extension module is one; a library behind ctypes is none."""
    library = tmp_path / "repository" / "native.so"
    subprocess.run(["gcc", "-shared", "-o", library, "-x", "c", "/dev/null"], check=True)
    loaded = ctypes.CDLL(str(library))
    assert loaded
    assert report(places, tmp_path).foreign == {"native.so": str(library)}


def test_a_process_of_no_side_reports_nothing(monkeypatch, tmp_path):
    """And one that cannot know its side does not measure."""
    monkeypatch.delenv(SIDE_VARIABLE, raising=False)
    assert reporter_of(tmp_path / "journal.jsonl", set()) is None
    monkeypatch.setenv(SIDE_VARIABLE, str(tmp_path / "nowhere.json"))
    with pytest.raises(UsageError, match=r"LLMPERF_SIDE=.*nowhere.json: expected a file that llmperf ab wrote"):
        reporter_of(tmp_path / "journal.jsonl", set())


def test_a_process_that_reported_nothing_is_no_proof(tmp_path):
    """An older version of the plugin, say."""
    with pytest.raises(UsageError, match="its process wrote no report of its imports"):
        Imported.read(tmp_path / "report.json")


def test_both_sides_from_one_file():
    """What is the same code cannot differ."""
    _refuse_shared({"base": Imported(packages={"engine": "/a/engine.py"}), "head": Imported(packages={"engine": "/b"})})
    with pytest.raises(UsageError, match=r"base and head imported engine from the same file, /a/engine.py"):
        _refuse_shared(dict.fromkeys(("base", "head"), Imported(packages={"engine": "/a/engine.py"})))


def test_a_verdict_file_names_files_by_their_place_in_the_side(tmp_path):
    """No path of the machine, where that can be avoided."""
    side = Side("base", "0" * 40, tmp_path, "python", {}, tmp_path / "base")
    files = {"engine": str(tmp_path / "base" / "environment" / "engine.py"), "brought": "/env/brought.py"}
    assert _proof(side, Imported(packages=files)).packages == {
        "engine": "environment/engine.py", "brought": "/env/brought.py",
    }  # fmt: skip


def test_folders_of_packages_are_in_the_order_of_the_search_path():
    """A side searches them as the user's environment does."""
    order = [sys.path.index(str(folder)) for folder in site_folders() if str(folder) in sys.path]
    assert order
    assert order == sorted(order)


@pytest.mark.parametrize("way", ["linked/one.py", "source/link.py", "source/", "source/..", "linked/../source/one.py"])
def test_any_path_to_the_repository_is_resolved(way, places, imported, tmp_path, monkeypatch):
    """Through links of a folder and of a file, with dots, and from the working directory."""
    root = tmp_path / "repository"
    (root / "source").mkdir()
    (root / "source" / "one.py").touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "linked").symlink_to(root / "source")
    (tmp_path / "elsewhere" / "source").symlink_to(root / "source")
    (root / "source" / "link.py").symlink_to(root / "one.py")
    monkeypatch.chdir(tmp_path / "elsewhere")
    imported("absolute", tmp_path / "elsewhere" / way)
    imported("relative", way)
    assert sorted(report(places, tmp_path).foreign) == ["absolute", "relative"]
