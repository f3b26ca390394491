"""Checkouts are clean, and the user's own is only read."""

from __future__ import annotations

import os
import shutil
import sys

import pytest
from repository import commit, git

from pytest_llmperf.ab import checkout as checkout_module
from pytest_llmperf.ab.checkout import check_out, commit_of, repository_root, tracked_files, working_tree_commit
from pytest_llmperf.ab.compare import relative_argument
from pytest_llmperf.errors import LlmperfError


@pytest.fixture
def repository(tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    commit(folder, {"code.py": "1", ".gitignore": "ignored\n", "sub/inner.py": "1"})
    return folder


def state(folder):
    return git(folder, "status", "--porcelain"), git(folder, "branch", "-a"), git(folder, "stash", "list")


def test_a_revision_is_checked_out_as_it_was(repository, tmp_path):
    """A branch, in a repository of its own."""
    first = commit_of(repository, "main")
    commit(repository, {"code.py": "2"})
    check_out(repository, first, tmp_path / "base")
    assert (tmp_path / "base" / "code.py").read_text() == "1"
    assert git(tmp_path / "base", "rev-parse", "HEAD") == first


def test_the_working_tree_is_taken_as_it_is_and_left_as_it_was(repository, tmp_path):
    """Changed, staged, new and deleted files come along, ignored ones do not; the same tree is the same commit."""
    (repository / "code.py").write_text("changed")
    (repository / "new.py").write_text("new")
    (repository / "ignored").write_text("ignored")
    (repository / "sub" / "inner.py").unlink()
    (repository / "staged.py").write_text("staged")
    git(repository, "add", "staged.py")
    before = state(repository)
    snapshot = working_tree_commit(repository / "sub")
    assert state(repository) == before
    assert working_tree_commit(repository) == snapshot
    check_out(repository, snapshot, tmp_path / "head")
    files = {path.name for path in (tmp_path / "head").iterdir()} - {".git"}
    assert files == {"code.py", "new.py", "staged.py", ".gitignore"}


def test_a_clean_working_tree_is_head(repository, monkeypatch):
    """Nothing is made up: an environment or our cache in it, which git does not ignore, is no part of it."""
    monkeypatch.setenv("LLMPERF_CACHE", str(repository / "cache"))
    monkeypatch.setattr(sys, "prefix", str(repository / "venv"))
    for folder in ("cache", "venv"):
        (repository / folder).mkdir()
        (repository / folder / "file").write_text("text")
    assert working_tree_commit(repository) == commit_of(repository, "HEAD")


@pytest.mark.parametrize("revision", ["nowhere", "--all", "", "HEAD:code.py"])
def test_a_revision_that_is_none_is_refused(repository, revision):
    """In one line that names it."""
    with pytest.raises(LlmperfError) as caught:
        commit_of(repository, revision)
    assert "\n" not in str(caught.value)
    assert revision in str(caught.value)


def test_outside_of_a_repository(tmp_path):
    """Git's own word."""
    with pytest.raises(LlmperfError, match="not a git repository"):
        repository_root(tmp_path)


def test_paths_into_the_users_checkout_are_each_sides_own(repository):
    """Node ids too; ignored folders and what lies elsewhere stay."""
    here = repository / "sub"
    given = [
        f"{here}/inner.py::test_a",
        str(repository / "code.py"),
        str(repository / "ignored"),
        "/elsewhere",
        "-q",
        "x.py",
    ]
    expected = ["inner.py::test_a", "../code.py", str(repository / "ignored"), "/elsewhere", "-q", "x.py"]
    assert [relative_argument(word, repository, here) for word in given] == expected


def with_submodule(tmp_path, repository, *, name="kernels"):
    """A submodule in a folder, at its first commit; returns its own clone there."""
    source = tmp_path / "source"
    source.mkdir()
    git(source, "init", "-q", "-b", "main")
    commit(source, {"kern.py": "1"})
    git(repository, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(source), name)
    commit(repository, {})
    return repository / name


def test_submodules_are_checked_out_at_their_commit(repository, tmp_path):
    """Also one that was moved since, from where git keeps it; what git tracks of them is listed."""
    inner = with_submodule(tmp_path, repository)
    first = git(repository, "rev-parse", "HEAD")
    commit(inner, {"kern.py": "2"})
    git(repository, "mv", "kernels", "moved")
    second = commit(repository, {})
    for name, revision, text in (("kernels", first, "1"), ("moved", second, "2")):
        folder = tmp_path / revision
        check_out(repository, revision, folder)
        assert (folder / name / "kern.py").read_text() == text
        assert f"{name}/kern.py" in tracked_files(folder)


def test_changes_in_a_submodule_are_part_of_the_working_tree(repository, tmp_path):
    """Uncommitted ones, which git's own commit would leave out."""
    inner = with_submodule(tmp_path, repository)
    assert working_tree_commit(repository) == commit_of(repository, "HEAD")
    (inner / "kern.py").write_text("changed")
    before = state(repository), state(inner)
    snapshot = working_tree_commit(repository)
    check_out(repository, snapshot, tmp_path / "head")
    assert (tmp_path / "head" / "kernels" / "kern.py").read_text() == "changed"
    assert (state(repository), state(inner)) == before


def test_a_submodule_that_is_not_here(repository, tmp_path):
    """What the user has not initialized stays empty; a commit that its clone lacks is named with what fetches it."""
    inner = with_submodule(tmp_path, repository)
    git(repository, "update-index", "--cacheinfo", f"160000,{'1' * 40},kernels")
    git(repository, "commit", "-qm", "a commit that was not pushed")
    with pytest.raises(LlmperfError, match=r"kernels lacks commit 111111111111: run git -C .* fetch origin 1{40}"):
        check_out(repository, commit_of(repository, "HEAD"), tmp_path / "lacking")
    git(repository, "submodule", "deinit", "-q", "-f", "kernels")
    shutil.rmtree(repository / ".git" / "modules")
    check_out(repository, commit_of(repository, "HEAD"), tmp_path / "empty")
    assert not any((tmp_path / "empty" / "kernels").iterdir())
    inner.rmdir()
    with pytest.raises(LlmperfError, match=r"submodule kernels is not in .*: run git submodule update --init there"):
        check_out(repository, commit_of(repository, "HEAD"), tmp_path / "gone")


def test_files_are_filtered_as_the_user_has_set_it_up(repository, tmp_path):
    """For this repository alone; git-lfs is such a filter, and finds its files where the user has them."""
    git(repository, "config", "filter.double.smudge", "sed s/1/11/")
    (repository / ".git" / "lfs").mkdir()
    commit(repository, {".gitattributes": "code.py filter=double", "code.py": "1"})
    check_out(repository, commit_of(repository, "HEAD"), tmp_path / "head")
    assert (tmp_path / "head" / "code.py").read_text() == "11"
    assert git(tmp_path / "head", "config", "lfs.storage") == str(repository / ".git" / "lfs")


def test_a_change_within_the_grain_of_the_clock(repository):
    """Of one size, as old as the index: git reads such a file, and the copy of its index has to be as old for that."""
    code, index, then = repository / "code.py", repository / ".git" / "index", (1_000_000_000, 1_000_000_000)
    os.utime(code, then)
    git(repository, "add", "code.py")
    os.utime(index, then)
    code.write_text("x")
    os.utime(code, then)
    assert working_tree_commit(repository) != commit_of(repository, "HEAD")


def test_a_file_that_is_missing_after_checking_out(repository, tmp_path, monkeypatch):
    """Git may end with 0 all the same."""
    real = checkout_module._git

    def checked_out(folder, *arguments, **more):
        done = real(folder, *arguments, **more)
        if arguments[0] == "checkout":
            (folder / "code.py").unlink()
        return done

    monkeypatch.setattr(checkout_module, "_git", checked_out)
    with pytest.raises(LlmperfError, match=r"git checked \w+ out without code.py"):
        check_out(repository, commit_of(repository, "HEAD"), tmp_path / "head")
