"""Reading files at other revisions."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pytest_llmperf.errors import BaselineError
from pytest_llmperf.system.git import Commit, CommitsBetween, commits_between, file_at, head_commit


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


def save(folder, name, text, subject, *, author="somebody"):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    git(folder, "add", ".")
    git(folder, "-c", f"user.name={author}", "commit", "-q", "--allow-empty", "-m", subject)
    return head_commit(folder)


@pytest.fixture
def history(tmp_path):
    """A repository whose first commit is followed by a baseline and a change of code."""
    git(tmp_path, "init", "-q", "-b", "main")
    first = save(tmp_path, "code.py", "1", "first")
    save(tmp_path, "baselines/cpu.json", "{}", "record")
    return tmp_path, first, save(tmp_path, "code.py", "2", "Compute µ\tin float64", author="Jané Doe")


def test_one_commit_between_two_has_a_name(history):
    """Commits of baselines change no code; the other direction names the commit that is missing."""
    folder, first, last = history
    commit = Commit(last, "Jané Doe", "Compute µ\tin float64")
    assert commits_between(folder, first, last) == CommitsBetween(1, 0, commit)
    assert commits_between(folder / "baselines", last, first) == CommitsBetween(0, 1, commit)
    assert commits_between(folder, last, last) == CommitsBetween(0, 0, None)


def test_merges_are_not_counted_and_branches_have_both_numbers(history):
    """A merge request of one commit is built as its merge."""
    folder, _, base = history
    git(folder, "checkout", "-q", "-b", "change")
    changed = save(folder, "more.py", "1", "change")
    git(folder, "checkout", "-q", "main")
    main = save(folder, "other.py", "1", "other")
    assert commits_between(folder, main, changed) == CommitsBetween(1, 1, None)
    git(folder, "merge", "-q", "--no-ff", "-m", "merge", "change")
    assert commits_between(folder, main, head_commit(folder)) == CommitsBetween(
        1, 0, Commit(changed, "somebody", "change")
    )
    assert commits_between(folder, base, head_commit(folder)).ahead == 2


def test_a_subject_in_another_encoding_can_be_written_as_json(history):
    """Git keeps the bytes."""
    folder, _, base = history
    message = folder / "message"
    message.write_bytes(b"caf\xe9")
    (folder / "code.py").write_text("3")
    git(folder, "-c", "i18n.commitEncoding=UTF-8", "commit", "-q", "-a", "-F", str(message))
    subject = commits_between(folder, base, head_commit(folder)).only.subject
    assert subject.encode()
    assert subject.startswith("caf")


def test_what_git_does_not_have_is_unknown(history, tmp_path_factory):
    """A name that is no hash is never given to git; a shallow clone lacks the history."""
    folder, first, last = history
    assert commits_between(folder, first, "f" * 40) is None
    assert commits_between(folder, "--output=x", last) is None
    assert commits_between(tmp_path_factory.mktemp("empty"), first, last) is None
    clone = tmp_path_factory.mktemp("clone") / "shallow"
    git(folder, "clone", "-q", "--depth=1", folder.as_uri(), str(clone))
    git(clone, "fetch", "-q", "--depth=1", "origin", first)
    assert commits_between(clone, first, last) is None
