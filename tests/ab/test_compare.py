"""What lies between base and head, from a real repository."""

from __future__ import annotations

import pytest
from repository import commit, git

from pytest_llmperf.ab.compare import PairedComparison, code_of, plan_comparison
from pytest_llmperf.ab.side import Recipe
from pytest_llmperf.report.why_text import code_lines


@pytest.fixture
def between(tmp_path, monkeypatch):
    """A repository of one commit; returns its folder, and what lies between two revisions of it."""
    monkeypatch.setenv("LLMPERF_CACHE", str(tmp_path / "home"))
    folder = tmp_path / "project"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    commit(folder, {"code.py": "0"})

    def of(base, head=None, *arguments):
        recipe = Recipe(python=None, command=None)
        wanted = PairedComparison(base=base, head=head, arguments=arguments, base_recipe=recipe, head_recipe=recipe)
        return code_of(plan_comparison(wanted, here=folder))

    return folder, of


def test_one_commit_is_named(between):
    """By the head that was asked for, or the working tree's if nothing in it was edited."""
    folder, of = between
    head = commit(folder, {"code.py": "1"})
    for code in (of("HEAD^", "HEAD"), of("HEAD^")):
        assert [*code_lines(code)] == [f"commit: {head[:12]} a: change"]


def test_several_commits_are_counted_and_pytest_gets_the_same_arguments(between):
    """Without those that name a file to write."""
    folder, of = between
    base = git(folder, "rev-parse", "HEAD")
    for number in range(1, 4):
        head = commit(folder, {"code.py": str(number)})
    code = of(base, "main", "tests", "--device=cpu", "--llmperf-verdicts=out.json")
    assert (code.between.ahead, code.between.only) == (3, None)
    assert code.bisect == ("llmperf", "bisect", base[:12], head[:12], "--", "tests", "--device=cpu")


@pytest.mark.parametrize("file", ["code.py", "new.py"])
def test_a_working_tree_that_was_edited_has_no_commit(between, file):
    """A new file is an edit too. The snapshot that head is built from is no commit of the user's."""
    folder, of = between
    head = commit(folder, {"code.py": "1"})
    base = git(folder, "rev-parse", "HEAD^")
    (folder / file).write_text("2")
    assert [*code_lines(of("HEAD"))] == [f"commit: none yet, changes in the working tree on {head[:12]}"]
    (told,) = code_lines(of("HEAD^"))
    assert told == f"commit: none yet, changes in the working tree on {head[:12]}, and 1 commit since {base[:12]}"
    assert [*code_lines(of("HEAD^", "HEAD"))] == [f"commit: {head[:12]} a: change"]
