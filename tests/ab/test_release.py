"""``llmperf bisect --package``: the release of a dependency that made a test bigger. Its processes are played."""

from __future__ import annotations

import json

import pytest
from played_commits import PlayedCommits
from repository import commit, git
from wheels import write_wheel

from pytest_llmperf.cli import main

FIRST_BAD = 4


class PlayedReleases(PlayedCommits):
    """Processes that count one operator more with a later release of ``tinydep`` in the environment of their side."""

    def _played(self, folder, *, counts):
        (installed,) = (folder.parent / "environment").glob("**/tinydep-*.dist-info")
        number = int(installed.name.removeprefix("tinydep-").partition(".")[0])
        return {"operators_per_token": 100.0 + (number >= FIRST_BAD)}


@pytest.fixture
def played(monkeypatch, tmp_path):
    """A repository, an index with five releases and a pre-release, and processes that are played."""
    runs, index, folder = PlayedReleases(), tmp_path / "index", tmp_path / "project"
    index.mkdir()
    folder.mkdir()
    for version in ("1.0", "2.0", "2.1rc1", "3.0", "4.0", "5.0"):
        write_wheel(index, "tinydep", version, "")
    git(folder, "init", "-q", "-b", "main")
    commit(folder, {"test_perf.py": ""})
    monkeypatch.setattr("pytest_llmperf.ab.blocks.run_perf_tests", runs)
    monkeypatch.setattr("pytest_llmperf.ab.single_process.run_perf_tests", runs)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("LLMPERF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    return runs


def test_the_release_that_counts_more_is_found(played, capfd, tmp_path):
    """One process a release; pre-releases are left out, and HEAD runs with each."""
    file = tmp_path / "found.json"
    assert main(["bisect", "--package", "tinydep", "1", "5.0", f"--json={file}"]) == 0
    said = capfd.readouterr().out
    assert "llmperf bisect: 4 releases from tinydep==1.0 to tinydep==5.0" in said
    assert "first bad release: tinydep==4.0 (after 3.0)" in said
    assert "operators / token 100 -> 101" in said
    found = json.loads(file.read_text())
    assert [found[name] for name in ("kind_of_candidate", "good", "bad", "last_good")] == [
        "release", "tinydep==1.0", "tinydep==5.0", "tinydep==3.0",
    ]  # fmt: skip
    assert (len(played.counted), len(played.timed)) == (4, 0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--package", "tinydep", "1", "4.5"], "tinydep: pip lists no version 4.5; the nearest are 3.0, 4.0, 5.0"),
        (["--package", "tinydep", "5", "1"], "tinydep: expected two versions, the older one first, not 5 and 1"),
        (["--package", "--pre", "1", "2"], "argument --package: expected one argument"),
        (["--package", "a b", "1", "2"], "'a b' is no name of a package"),
        (["--package", "tinydep", "1", "5", "nowhere"], "unknown git revision 'nowhere'"),
        (["HEAD", "HEAD", "HEAD"], "unexpected 'HEAD'; only --package takes a third argument"),
    ],
)
def test_what_cannot_work_is_one_line_and_exit_code_4(played, capfd, arguments, words):
    """Before anything is measured."""
    try:
        code = main(["bisect", *arguments])
    except SystemExit as end:  # of argparse
        code = end.code
    assert code == 4
    assert words in capfd.readouterr().err
    assert played.processes == 0
