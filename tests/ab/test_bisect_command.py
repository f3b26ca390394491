"""``llmperf bisect`` through the real command line and real git repositories; most processes are played."""

from __future__ import annotations

import json
import re

import pytest
from perf_project import QUICK
from played_commits import TEST, PlayedCommits
from repository import commit, git

from pytest_llmperf.ab.bisection_file import BisectionFile
from pytest_llmperf.cli import main
from pytest_llmperf.report.why_text import why_line

ONE_OPERATOR_MORE = """
import pathlib
import pytest
import torch

EXTRA = int((pathlib.Path(__file__).parent / "extra").read_text())


def more_work(*_):
    for _ in range(EXTRA):
        torch.ones(1).sin()


@pytest.fixture(autouse=True)
def _more_work(request):
    if "llm" in request.fixturenames:
        request.getfixturevalue("llm").model.register_forward_hook(more_work)
"""


@pytest.fixture
def played(monkeypatch):
    """Replace all processes of perf tests, and those that list the environment."""
    runs = PlayedCommits()
    monkeypatch.setattr("pytest_llmperf.ab.compare._environment_keys", lambda _recipes: ["environment"])
    monkeypatch.setattr("pytest_llmperf.ab.blocks.run_perf_tests", runs)
    monkeypatch.setattr("pytest_llmperf.ab.single_process.run_perf_tests", runs)
    return runs


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """An empty repository, in which the commands run."""
    folder = tmp_path / "project"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("LLMPERF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    return folder


def history(folder, count, changes):
    """Commit GOOD, and then ``count`` commits; ``changes`` gives the files of some of them, or ``None`` to delete."""
    start = {"test_perf.py": "", "tpot_ms": "10", "operators_per_token": "100"}
    commits = []
    for number in range(count + 1):
        files = (start if number == 0 else {"note": str(number)}) | changes.get(number, {})
        for name in (name for name, text in files.items() if text is None):
            (folder / name).unlink()
        commits.append(commit(folder, {name: text for name, text in files.items() if text is not None}))
    return commits


def bisect(*arguments):
    return main(["bisect", *arguments])


def test_one_operator_more_is_found_and_explained(tmp_path, monkeypatch, model_cache, capfd):
    """With real processes: GOOD, BAD and one commit between are counted, each once."""
    folder = tmp_path / "project"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    monkeypatch.chdir(folder)
    test = 'import pytest\n\n@pytest.mark.parametrize("llm", ["fp32"], indirect=True)\ndef test_decode(llm, llmperf):\n'
    files = {"conftest.py": ONE_OPERATOR_MORE, "test_perf.py": f"{test}    llmperf.generate(llm)\n"}
    good = commit(folder, files | {"extra": "0", ".gitignore": "__pycache__\n"})
    culprit = commit(folder, {"extra": "1"})
    bad = commit(folder, {"note": "1"})
    assert bisect(good, bad, "--", *QUICK[1:], "--llmperf-guards=none", "-p", "no:cacheprovider") == 0
    said = capfd.readouterr().out
    assert f"first bad commit: {culprit[:12]} (a, " in said
    assert re.search(r"operators / token (\d+) -> (\d+), of test_perf.py::test_decode\[fp32\]", said)
    assert f"counted work per token in decode, beside {good[:12]}" in said
    assert "aten::sin" in said
    assert git(folder, "status", "--porcelain") == ""


def test_a_counted_step_takes_one_process_a_commit(repository, played, capfd):
    """GOOD and BAD, and the logarithm of the number of commits."""
    commits = history(repository, 32, {21: {"operators_per_token": "101"}})
    assert bisect(commits[0], "HEAD", "--json=out.json") == 0
    said = capfd.readouterr().out
    assert f"first bad commit: {commits[21][:12]} (a, " in said
    assert f"operators / token 100 -> 101, of {TEST}" in said
    assert (len(played.counted), len(played.timed)) == (2 + 5, 0)
    found = json.loads((repository / "out.json").read_text())
    assert (found["kind"], found["found"], found["before"], found["after"]) == ("exact", True, 100.0, 101.0)
    assert [one["name"] for one in found["culprits"]] == [commits[21][:12]]


def test_a_count_with_several_steps_is_told_as_such(repository, played, capfd):
    """The step across the middle is found, and the others are mentioned."""
    commits = history(
        repository, 8, {2: {"operators_per_token": "104"}, 5: {"operators_per_token": "120"},
                        7: {"operators_per_token": "118"}}
    )  # fmt: skip
    assert bisect(commits[0], "HEAD") == 0
    said = capfd.readouterr().out
    assert f"first bad commit: {commits[5][:12]}" in said
    assert "operators / token 104 -> 120" in said
    assert "other commits change it too, since it is 100 on GOOD and 118 on BAD" in said


def test_a_slower_commit_is_found_by_blocks(repository, played, capfd):
    """Its ratio has an interval; the blocks are kept, so that the same command measures nothing more."""
    played.spread = 0.01
    commits = history(repository, 16, {11: {"tpot_ms": "10.8"}})
    assert bisect(commits[0], "HEAD", "--no-explain", "--json=out.json") == 0
    said = capfd.readouterr().out
    assert "no counted figure that gates is worse on BAD" in said
    assert "searching for TPOT ×1.0" in said
    assert f"first bad commit: {commits[11][:12]} (a, " in said
    found = json.loads((repository / "out.json").read_text())
    low, high = found["interval"]
    assert 1.06 < low < found["ratio"] < high < 1.1
    assert found["belief"] >= 0.95
    assert found["blocks"] * 2 == len(played.timed)
    before = played.processes
    assert bisect(commits[0], "HEAD", "--no-explain") == 0
    assert f"first bad commit: {commits[11][:12]} (a, " in capfd.readouterr().out
    assert played.processes == before


def test_a_slower_commit_is_explained_by_its_operators(repository, played, capfd):
    """Profiled beside the commit before it; the file has the same text."""
    commits = history(repository, 4, {2: {"tpot_ms": "13"}})
    assert bisect(commits[0], "HEAD", "--json=out.json") == 0
    said = capfd.readouterr().out
    assert f"first bad commit: {commits[2][:12]}" in said
    why = BisectionFile.model_validate_json((repository / "out.json").read_text()).why
    assert why_line(why).startswith("decode: aten::mm +3.00 ms; 100 % of the time")
    assert why_line(why) in said


def test_an_interrupted_search_continues(repository, played, capfd):
    """No process is run twice."""
    commits = history(repository, 8, {3: {"tpot_ms": "11"}})
    assert bisect(commits[0], "HEAD", "--no-explain") == 0
    whole = played.processes
    said = capfd.readouterr().out
    for most in (1, 9, 16, whole):
        played.most = played.processes + most
        restart = ["--restart"] if most == 1 else []
        code = bisect(commits[0], "HEAD", "--no-explain", *restart)
    assert code == 0
    assert f"first bad commit: {commits[3][:12]}" in said
    again = capfd.readouterr()
    assert f"first bad commit: {commits[3][:12]}" in again.out
    assert "llmperf: interrupted; run the same command again to continue" in again.err


def test_commits_that_do_not_build_or_fail_are_skipped(repository, played, capfd):
    """Each with its reason. What cannot be told apart is reported together."""
    commits = history(
        repository, 9, {4: {"broken": ""}, 5: {"broken": None, "operators_per_token": "101", "error": "no kernel\x1b"},
                        6: {"error": None, "dies": "3"}, 7: {"dies": None}}
    )  # fmt: skip
    assert bisect(commits[0], "HEAD", "--prepare", "test ! -e broken", "--", "-v") == 1
    said = capfd.readouterr().out
    names = ", ".join(one[:12] for one in commits[4:7])
    assert f"first bad commit is one of {names} and 1 more: all but the last were skipped" in said
    assert f"skipped: {commits[4][:12]} (a, " in said
    assert "does not build" in said
    assert f"{TEST}: no kernel\\x1b" in said
    assert "pytest ended with exit code 3" in said
    assert "\x1b" not in said


def test_a_timed_search_skips_too(repository, played, capfd):
    """Belief in skipped commits goes to the next one that can be measured."""
    commits = history(repository, 6, {3: {"dies": "3"}, 4: {"dies": None, "tpot_ms": "11"}})
    assert bisect(commits[0], "HEAD", "--no-explain") == 1
    said = capfd.readouterr().out
    assert f"skipped: {commits[3][:12]}" in said
    assert f"first bad commit is one of {commits[3][:12]}, {commits[4][:12]}: all but the last were skipped" in said


def test_no_commit_between_can_be_measured(repository, played, capfd):
    commits = history(repository, 4, {1: {"dies": "3"}, 4: {"dies": None, "operators_per_token": "101"}})
    assert bisect(commits[0], "HEAD") == 1
    assert "undecided: none of the 3 commits between GOOD and BAD could be measured" in capfd.readouterr().out


def test_without_a_commit_between_it_is_bad_itself(repository, played, capfd):
    """At once: nothing is measured besides GOOD and BAD."""
    commits = history(repository, 1, {1: {"operators_per_token": "101"}})
    assert bisect(*commits) == 0
    assert f"first bad commit: {commits[1][:12]}" in capfd.readouterr().out
    assert len(played.counted) == 2


def test_the_budget_ends_between_two_commits(repository, played, capfd):
    """The belief is shown, and the same command continues."""
    played.spread = 0.01
    commits = history(repository, 16, {11: {"tpot_ms": "11.5"}})
    assert bisect(commits[0], "HEAD", "--no-explain", "--blocks=10") == 1
    said = capfd.readouterr().out
    assert re.search(r"undecided: the first bad commit is between \w{12} and \w{12} \(\d+ commits, belief 9\d%\)", said)
    assert bisect(commits[0], "HEAD", "--no-explain") == 0
    assert f"first bad commit: {commits[11][:12]}" in capfd.readouterr().out


def test_memory_is_searched_by_one_process_a_commit(repository, played, capfd):
    """It is exact, but a run that only counts does not measure it."""
    sizes = {"decode_peak_allocated_bytes": str(2**30)}
    commits = history(repository, 4, {0: sizes, 2: {"decode_peak_allocated_bytes": str(2**31)}})
    assert bisect(commits[0], "HEAD", "--metric=decode_peak_allocated", "--no-explain") == 0
    said = capfd.readouterr().out
    assert f"first bad commit: {commits[2][:12]}" in said
    assert "decode peak allocated 1.00 GiB -> 2.00 GiB" in said


def test_metric_chooses_among_what_got_worse(repository, played, capfd):
    """By default, counted work comes first; the time may have another culprit."""
    commits = history(repository, 4, {1: {"operators_per_token": "101"}, 3: {"tpot_ms": "11"}})
    assert bisect(commits[0], "HEAD", "--metric=tpot", "--no-explain") == 0
    assert f"first bad commit: {commits[3][:12]}" in capfd.readouterr().out
    assert bisect(commits[0], "HEAD", "--no-explain") == 0
    assert f"first bad commit: {commits[1][:12]}" in capfd.readouterr().out


def test_a_merge_is_told_with_the_command_that_searches_it(repository, played, capfd):
    """The search follows first parents, as most teams merge."""
    good = history(repository, 0, {})[0]
    git(repository, "checkout", "-q", "-b", "topic")
    commit(repository, {"note": "topic"})
    tip = commit(repository, {"operators_per_token": "101"})
    git(repository, "checkout", "-q", "main")
    commit(repository, {"other": ""})
    git(repository, "merge", "-q", "--no-ff", "-m", "merge topic", "topic")
    merge = git(repository, "rev-parse", "HEAD")
    commit(repository, {"other": "2"})
    assert bisect(good, "HEAD", "--", "-v") == 0
    said = capfd.readouterr().out
    assert f"first bad commit: {merge[:12]} (a, " in said
    assert (
        f"it is a merge; to search the commits that it brought in: llmperf bisect {good[:12]} {tip[:12]} -- -v" in said
    )
    assert bisect(good[:12], tip[:12]) == 0
    assert f"first bad commit: {tip[:12]}" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "nothing to find: no gating metric is worse on BAD than on GOOD"),
        ({2: {"tpot_ms": "8"}}, "nothing to find: BAD is not worse than GOOD but better: TPOT ×0.800"),
        ({2: {"error": "broken"}}, f"nothing to find: BAD cannot be measured: {TEST}: broken"),
    ],
    ids=["no-difference", "better", "fails"],
)
def test_nothing_to_find_is_one_line_and_exit_code_1(repository, played, capfd, changes, words):
    commits = history(repository, 2, changes)
    assert bisect(commits[0], "HEAD") == 1
    assert f"llmperf bisect: {words}" in capfd.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["HEAD", "HEAD"], r"GOOD \(HEAD, \w{12}\) and BAD \(HEAD, \w{12}\) are the same commit: expected two"),
        (
            ["HEAD", "HEAD~1"],
            r"GOOD \(HEAD, .*\) is not an ancestor of BAD \(HEAD~1, .*\), but BAD is one of GOOD",
        ),
        (["other", "HEAD"], r"GOOD \(other, .*\) is not an ancestor of BAD \(HEAD, .*\): name an older GOOD"),
        (["nowhere", "HEAD"], "unknown git revision 'nowhere'"),
        (["HEAD~1", "--upload-pack=x"], r"llmperf bisect: error|unexpected|the following arguments are required"),
        (["HEAD~1", "HEAD", "--metric=tpott"], "unknown metric 'tpott'"),
        (["HEAD~1", "HEAD", "--metric=token_digest"], "--metric token_digest: it is identity: expected a timed"),
        (["HEAD~1", "HEAD", "--blocks=1"], "--blocks 1: expected at least 8"),
    ],
)
def test_what_cannot_work_is_one_line_and_exit_code_4(repository, played, capfd, arguments, words):
    history(repository, 2, {})
    git(repository, "checkout", "-q", "--orphan", "other")
    commit(repository, {"elsewhere": ""})
    git(repository, "checkout", "-q", "main")
    try:
        code = bisect(*arguments)
    except SystemExit as end:  # of argparse
        code = end.code
    assert code == 4
    assert re.search(words, capfd.readouterr().err)
    assert played.processes == 0


def test_outside_a_repository(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert bisect("a", "b") == 4
    assert "not a git repository" in capfd.readouterr().err
