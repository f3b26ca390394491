"""Reading files at other revisions."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pytest_llmperf.errors import BaselineError
from pytest_llmperf.system.git import file_at


def git(folder, *arguments):
    identity = ("-c", "user.name=somebody", "-c", "user.email=somebody@example.org")
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path):
    """A repository with two commits of one file; the first is tagged."""
    git(tmp_path, "init", "-q")
    (tmp_path / "sub" / "baselines").mkdir(parents=True)
    for text, tag in (("old µ\n", "v1"), ("new\n", "v2")):
        (tmp_path / "sub" / "baselines" / "a.json").write_text(text, encoding="utf-8")
        git(tmp_path, "add", ".")
        git(tmp_path, "commit", "-q", "-m", tag)
        git(tmp_path, "tag", tag)
    return tmp_path


def test_a_file_is_read_as_it_was(repository):
    """By absolute or relative path, whether or not the file still exists."""
    sub = repository / "sub"
    assert file_at(sub, "v1", Path("baselines/a.json")) == "old µ\n"
    assert file_at(sub, "HEAD", sub / "baselines" / "a.json") == "new\n"
    (sub / "baselines" / "a.json").unlink()
    (sub / "baselines").rmdir()
    assert file_at(repository, "HEAD~1", sub / "baselines" / "a.json") == "old µ\n"
    assert file_at(sub / ".." / "sub", "v2", Path("baselines/a.json")) == "new\n"


@pytest.mark.parametrize(
    ("revision", "path", "message"),
    [
        ("v9", "baselines/a.json", "unknown git revision 'v9'"),
        ("--output=x", "baselines/a.json", "is not a git revision"),
        ("", "baselines/a.json", "is not a git revision"),
        ("v\x1b[1m", "baselines/a.json", r"unknown git revision"),
        ("v1", "baselines/b.json", "there is no file baselines/b.json at that revision"),
        ("v1", "baselines", "there is no file baselines at that revision"),
        ("v1", "../../a.json", "there is no file"),
    ],
)
def test_what_is_not_there_is_one_line(repository, revision, path, message):
    """The error names revision and file, without control characters."""
    with pytest.raises(BaselineError, match=message) as caught:
        file_at(repository / "sub", revision, Path(path))
    assert str(caught.value).isprintable()
    assert list(repository.rglob("x")) == []


def test_outside_a_repository_is_one_line(tmp_path, monkeypatch):
    """It is not reported as an unknown revision."""
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(BaselineError, match="is not in a git repository"):
        file_at(tmp_path, "main", Path("a.json"))
