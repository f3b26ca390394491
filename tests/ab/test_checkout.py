"""Checkouts are clean, and the user's own is only read."""

from __future__ import annotations

import pytest
from repository import commit, git

from pytest_llmperf.ab.checkout import check_out, commit_of, repository_root, working_tree_commit
from pytest_llmperf.ab.command import relative_argument
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


def test_a_clean_working_tree_is_head(repository):
    """Nothing is made up."""
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
