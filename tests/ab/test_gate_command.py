"""``llmperf gate`` and ``llmperf ab`` through the real command line, and how the gate puts its two stages together."""

from __future__ import annotations

import os
import re
from collections import Counter

import pytest
from perf_project import FAKE_CLOCK, QUICK
from repository import commit, git

from pytest_llmperf.ab.gate import combined, open_tests
from pytest_llmperf.cli import main
from pytest_llmperf.cli.gate_command import final_line
from pytest_llmperf.report.why_text import why_text
from pytest_llmperf.system.pytest_process import without_outputs
from pytest_llmperf.verdict.model import Outcome
from pytest_llmperf.verdict.verdict_file import CellVerdict, TestVerdicts, VerdictFile, read_verdicts
from pytest_llmperf.verdict.why import Move, why_of
from pytest_llmperf.verdict.work_change import CountChange, WorkChange

STEP_OF_REVISION = """
os.environ["STEP_MS"] = open(os.path.join(os.path.dirname(__file__), "step")).read()
"""
PERF_TESTS = """
import pytest

@pytest.mark.parametrize("llm", ["fp32"], indirect=True)
@pytest.mark.parametrize("batch_size", {sizes})
def test_decode(llm, llmperf, batch_size):
    llmperf.generate(llm, batch_size=batch_size)
"""
ARGUMENTS = [*QUICK[1:], "--llmperf-guards=none", "-p", "no:cacheprovider"]


@pytest.fixture
def repository(tmp_path, monkeypatch, model_cache):
    """Two revisions: head is slower by half, and has one test more."""
    folder = tmp_path / "project"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    files = {"conftest.py": FAKE_CLOCK + STEP_OF_REVISION, "step": "1", ".gitignore": "__pycache__\n"}
    commit(folder, files | {"test_perf.py": PERF_TESTS.format(sizes=[1])})
    git(folder, "checkout", "-q", "-b", "change")
    commit(folder, {"step": "1.5", "test_perf.py": PERF_TESTS.format(sizes=[1, 2])})
    for name in ("CI", "BUILD_NUMBER", "GITHUB_BASE_REF", "CI_MERGE_REQUEST_TARGET_BRANCH_NAME", "CHANGE_TARGET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(folder)
    return folder


def test_a_slower_pull_request_fails_without_any_baseline(repository, capfd, monkeypatch):
    """Screened as new, compared with the merge base, regressed; the new test is new; the checkout is left alone."""
    monkeypatch.setenv("COLUMNS", "160")
    code = main(["gate", "--verdicts=out.json", "--", *ARGUMENTS])
    said = capfd.readouterr().out
    assert code == 1, said
    assert "llmperf gate: 2 of 2 tests left open" in said
    assert "null control: neither side differs from itself" in said
    assert re.search(
        r"regressed: test_perf.py::test_decode\[1-fp32\]: TPOT ×1\.\d+ \[.*\]: 1\.50 ms > 1\.00 ms baseline", said
    )
    assert "llmperf gate: FAILED: 11 of 22 gating cells decided: 1 regressed, 10 unchanged, 11 new" in said
    found = read_verdicts(repository / "out.json")
    assert found.failed
    assert {test.test: test.failed for test in found.tests} == {
        "test_perf.py::test_decode[1-fp32]": True, "test_perf.py::test_decode[2-fp32]": False,
    }  # fmt: skip
    assert {name: side.commit for name, side in found.sides.items()} == {
        "base": git(repository, "rev-parse", "main"), "head": git(repository, "rev-parse", "HEAD"),
    }  # fmt: skip
    slower, new = (test.why for test in found.tests)
    assert new is None
    assert [one.phase for one in slower.times] == ["decode"]
    assert slower.times[0].operators
    assert [(change.base, change.is_equal) for change in slower.work] == [("base", True)]
    told = why_text(slower, 160)
    assert f"why: test_perf.py::test_decode[1-fp32]\n{told}\n" in said
    assert "counted work per token in decode, beside base: the same operators, FLOPs and bytes" in told
    assert told.endswith(f"\ncommit: {git(repository, 'rev-parse', 'HEAD')[:12]} a: change")
    assert "llmperf ab: profiling what regressed, on both sides: test_perf.py::test_decode[1-fp32]" in said
    assert {path.parent.name for path in (repository / ".llmperf" / "traces").glob("*/*/*.gz")} == {"base", "head"}
    assert git(repository, "status", "--porcelain") == "?? out.json"
    assert git(repository, "worktree", "list").count("\n") == 0


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs a choice of two cores"
)
def test_two_sets_of_cores_measure_side_by_side(repository, capfd):
    """Each pair on one of them, in real processes; the conftest writes their cores. The verdict file repeats it."""
    seen = repository.parent / "seen"
    conftest = FAKE_CLOCK + STEP_OF_REVISION + f"open({str(seen)!r}, 'a').write(f'{{os.sched_getaffinity(0)}}\\n')\n"
    base = commit(repository, {"conftest.py": conftest, "step": "1", "test_perf.py": PERF_TESTS.format(sizes=[1])})
    commit(repository, {"step": "1.5"})
    first, second, *_ = sorted(os.sched_getaffinity(0))
    devices = f"cpu:{first},cpu:{second}"
    arguments = [word for word in ARGUMENTS if "device" not in word]
    asked = ["ab", base, "HEAD", f"--device={devices}", "--no-explain", "--blocks=8", "--verdicts=out.json"]
    code = main([*asked, "--", *arguments, "--llmperf-gate=tpot"])
    said = capfd.readouterr().out
    assert code == 1, said
    assert f"blocks by device: cpu:{first} 6, cpu:{second} 2" in said
    assert "devices disturb each other" not in said
    assert Counter(seen.read_text().split()) == {f"{{{first}}}": 12, f"{{{second}}}": 4}
    assert f"--device={devices}" in read_verdicts(repository / "out.json").tests[0].reproduce


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs a choice of cores")
def test_the_gate_screens_on_the_first_device(repository, monkeypatch):
    """Of a CPU on all cores, as the stored baseline was measured."""
    asked = []
    monkeypatch.setattr(
        "pytest_llmperf.cli.gate_command.screen_tests", lambda words, *_, **__: asked.append(words) or (3, None)
    )
    core = min(os.sched_getaffinity(0))
    for devices in ("cuda:1,cuda:0", f"cpu:{core}"):
        assert main(["gate", f"--device={devices}", "--", "-q"]) == 3
    assert asked == [["-q", "--llmperf-device=cuda:1"], ["-q", "--llmperf-device=cpu"]]


ONE_MORE_OPERATOR = """
    llm.model.register_forward_hook(lambda _model, _given, found: (found.logits.erf(), None)[1])
    llmperf.generate("""


def test_several_commits_between_are_told_with_the_command_that_finds_the_one(repository, capfd, monkeypatch):
    """A counted regression of a real repository: why is told in the same words in the output and in the file."""
    monkeypatch.setenv("COLUMNS", "160")
    changed = PERF_TESTS.format(sizes=[1]).replace("\n    llmperf.generate(", ONE_MORE_OPERATOR)
    head = commit(repository, {"step": "1", "test_perf.py": changed})
    base = git(repository, "rev-parse", "main")
    code = main(["ab", "main", "HEAD", "--verdicts=out.json", "--", *ARGUMENTS, "--llmperf-gate=operators_per_token"])
    said = capfd.readouterr().out
    assert code == 1, said
    (test,) = read_verdicts(repository / "out.json").tests
    lines = why_text(test.why, 160).split("\n")
    assert lines[0].startswith("decode: +1 operators a token: aten::erf 0 -> 1; ")
    assert lines[-2] == f"2 commits between {base[:12]} and {head[:12]}: this finds the one:"
    assert lines[-1].startswith(f"  llmperf bisect {base[:12]} {head[:12]} -- ")
    assert lines[-1].endswith("'--llmperf-only=test_perf.py::test_decode[1-fp32]'")
    assert "\n".join([f"why: {test.test}", *lines]) in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ab", "nowhere"], "llmperf: unknown git revision 'nowhere'"),
        (["ab", "main", "--budget", "soon"], "llmperf: --budget 'soon': expected a time such as 20m, 90s or 1.5h"),
        (["ab", "main", "--blocks", "7"], "llmperf: --blocks 7: expected at least 8: fewer show no change"),
        (["gate", "nowhere"], "llmperf: unknown git revision 'nowhere'"),
        (["gate", "--fail-on", "bad"], "llmperf: --fail-on 'bad': expected some of improved, "),
        (["show", "--", "x"], "llmperf: llmperf show: unexpected 'x'"),
    ],
)
def test_what_cannot_work_is_one_line_and_exit_code_4(repository, capfd, arguments, words):
    """Before anything is measured."""
    assert main(arguments) == 4
    said = capfd.readouterr().err
    assert said.startswith(words)
    assert said.count("\n") == 1


def test_no_perf_test_selected(repository, capfd):
    """Neither a pass nor a traceback."""
    assert main(["ab", "main", "--", *ARGUMENTS, "-k", "nothing"]) == 4
    assert "llmperf: no perf test was selected on head" in capfd.readouterr().err


def test_the_same_tree_is_said_first_and_compared_all_the_same(repository, capfd):
    """An A/A comparison: what is counted needs one block. Another commit of the same files is the same tree."""
    git(repository, "commit", "-q", "--allow-empty", "-m", "nothing")
    assert main(["ab", "HEAD^", "--", *ARGUMENTS, "--llmperf-gate=operators_per_token"]) == 0
    said = capfd.readouterr().out
    assert "base and head are the same tree" in said.splitlines()[1]
    assert "2 of 2 gating cells decided: 2 unchanged" in said


@pytest.mark.parametrize(
    ("raised", "ending"),
    [
        (OSError(28, "No space left on device", "0002"), (4, "llmperf: 0002: No space left on device\n")),
        (KeyboardInterrupt(), (2, "llmperf: interrupted; run the same command again to continue\n")),
    ],
    ids=["full-disk", "interrupted"],
)
def test_what_ends_a_comparison_from_outside_is_one_line(repository, monkeypatch, capfd, raised, ending):
    """Blocks that were whole are kept (see the series)."""

    def end(*_args, **_more):
        raise raised

    monkeypatch.setattr("pytest_llmperf.ab.compare.prepare_sides", end)
    assert (main(["ab", "main"]), capfd.readouterr().err) == ending


def cell(outcome, metric="tpot_ms", *, value=5.0, gates=True, blocks=0, against="", sentence=""):  # noqa: PLR0913  # a cell has that many
    return CellVerdict(
        metric=metric, unit="ms", workload="w", outcome=outcome, gates=gates, fails=outcome is Outcome.REGRESSED,
        value=value, baseline=None, ratio=None, interval=None, limit_ratio=None, tolerate=0.02, catch=0.05,
        minimum_detectable_effect=None, p_value=None, runs=0, sessions=0, blocks=blocks, candidates=[],
        against=against, sentence=sentence,
    )  # fmt: skip


def verdicts(**tests):
    return VerdictFile(
        tool="t", exit_code=0, failed=False, breach="", device_key="cpu", run=None, injected=[], outcomes={}, decided=0,
        total=0, missing=[], differences=[],
        tests=[
            TestVerdicts(test=name, error="", failed=False, workloads={}, cells=cells, reproduce="")
            for name, cells in tests.items()
        ],
    )  # fmt: skip


@pytest.mark.parametrize(
    "writes",
    [
        ["--llmperf-journal=run.jsonl"], ["--llmperf-journal", "run.jsonl"], ["--llmperf-report=page.html"],
        ["--llmperf-verdicts=v.json"], ["--llmperf-json=figures"], ["--llmperf-profile=traces"], ["--llmperf-update"],
        ["--junitxml=j.xml"], ["--junit-xml", "j.xml"], ["--benchmark-json=b.json"], ["--benchmark-save=b"],
        ["--benchmark-autosave"], ["--benchmark-histogram=pictures"], ["--benchmark-cprofile-dump"], ["--debug=d.log"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_neither_an_inner_run_nor_a_command_to_repeat_writes_what_the_first_run_wrote(writes):
    """It would overwrite the evidence."""
    assert without_outputs(["tests/perf", *writes, "--device=cpu"]) == ["tests/perf", "--device=cpu"]


def test_what_is_open_gates():
    """Counted cells too. What explains, has no value here, or is left open by an anchor is not worth a block."""
    screened = verdicts(
        a=[cell(Outcome.INCONCLUSIVE)],
        b=[cell(Outcome.UNCHANGED), cell(Outcome.NEW, "operators_per_token")],
        c=[cell(Outcome.NEW, gates=False)],
        d=[cell(Outcome.NEW, value=None)],
        e=[cell(Outcome.NOT_COMPARABLE)],
        f=[cell(Outcome.INVALID)],
        g=[cell(Outcome.INCONCLUSIVE, against="v1.0")],
    )
    assert open_tests(screened) == ["a", "b", "e", "f"]


@pytest.mark.parametrize(
    ("first", "second", "outcome", "failed"),
    [
        (Outcome.INCONCLUSIVE, Outcome.REGRESSED, Outcome.REGRESSED, True),
        (Outcome.INCONCLUSIVE, Outcome.UNCHANGED, Outcome.UNCHANGED, False),
        (Outcome.INCONCLUSIVE, Outcome.INCONCLUSIVE, Outcome.INCONCLUSIVE, False),
        (Outcome.UNCHANGED, Outcome.REGRESSED, Outcome.UNCHANGED, False),
        (Outcome.REGRESSED, Outcome.UNCHANGED, Outcome.REGRESSED, True),
        (Outcome.NEW, Outcome.IMPROVED, Outcome.IMPROVED, False),
    ],
)
def test_a_comparison_answers_what_the_screen_left_open(first, second, outcome, failed):
    """And nothing else."""
    found = combined(verdicts(a=[cell(first)]), verdicts(a=[cell(second)]), fail_on=frozenset())
    assert found.tests[0].cells[0].outcome is outcome
    assert (found.failed, found.exit_code) == (failed, int(failed))


@pytest.mark.parametrize(("outcome", "blocks"), [(Outcome.INCONCLUSIVE, 24), (Outcome.INVALID, 0)])
def test_what_the_blocks_left_open_is_told_in_their_words(outcome, blocks):
    """And not as what the gate is about to decide: not either where each block was disturbed, so that none counts."""
    screened = verdicts(a=[cell(Outcome.INCONCLUSIVE, sentence="possible regression: llmperf gate decides")])
    compared = verdicts(a=[cell(outcome, blocks=blocks, sentence="after 24 blocks, the last look")])
    (found,) = combined(screened, compared, fail_on=frozenset()).tests[0].cells
    assert (found.outcome, found.blocks, found.sentence) == (outcome, blocks, "after 24 blocks, the last look")


def changed(base, count):
    operators = (CountChange(name="aten::mm", before=1.0, after=count),) if count != 1.0 else ()
    return WorkChange(workload="w", phase="decode", base=base, operators=operators)


@pytest.mark.parametrize(
    ("screened", "compared", "kept"),
    [
        ([changed("baseline", 2.0)], [changed("base", 2.0)], "base"),
        ([changed("baseline", 2.0)], [changed("base", 1.0)], "baseline"),
        ([changed("baseline", 2.0)], [], "baseline"),
        ([], [changed("base", 1.0)], "base"),
        ([WorkChange(workload="w", phase="decode", base="baseline", reason="-")], [changed("base", 1.0)], "base"),
    ],
    ids=["both", "equal to the merge base", "screened", "compared", "nothing stored"],
)
def test_the_work_is_explained_once(screened, compared, kept):
    """Beside the merge base, unless only the baseline shows a change."""
    moves = [Move("operators_per_token", "w", None, fails=True)]
    both = [
        verdicts(a=[cell(Outcome.REGRESSED, "operators_per_token")])
        .tests[0]
        .model_copy(update={"why": why_of(moves, changes, [], [])})
        for changes in (screened, compared)
    ]
    first, second = (verdicts().model_copy(update={"tests": [test]}) for test in both)
    found = combined(first, second, fail_on=frozenset()).tests[0]
    assert [change.base for change in found.why.work] == [kept]


@pytest.mark.parametrize("screened", [Outcome.UNCHANGED, Outcome.REGRESSED, Outcome.IMPROVED])
def test_what_the_screen_decided_stays_decided(screened):
    """However long the blocks of another cell of its test went on."""
    found = combined(
        verdicts(a=[cell(screened)]), verdicts(a=[cell(Outcome.INCONCLUSIVE, blocks=24)]), fail_on=frozenset()
    )
    assert (found.tests[0].cells[0].outcome, found.tests[0].cells[0].blocks) == (screened, 0)


@pytest.mark.parametrize("outcome", [Outcome.NEW, Outcome.NOT_COMPARABLE])
def test_a_cell_that_was_not_compared_keeps_what_the_screen_said(outcome):
    """A test that base has not, or has with another workload."""
    screened = verdicts(a=[cell(Outcome.INCONCLUSIVE, sentence="the screen's")])
    found = combined(screened, verdicts(a=[cell(outcome)]), fail_on=frozenset())
    assert found.tests[0].cells[0].sentence == "the screen's"


def test_the_merge_base_does_not_speak_for_an_anchor():
    """Ten changes of one per cent are each unchanged beside the merge base."""
    screened = verdicts(a=[cell(Outcome.INCONCLUSIVE), cell(Outcome.INCONCLUSIVE, against="v1.0")])
    found = combined(screened, verdicts(a=[cell(Outcome.UNCHANGED, blocks=4)]), fail_on=frozenset())
    assert [(one.outcome, one.against) for one in found.tests[0].cells] == [
        (Outcome.UNCHANGED, ""), (Outcome.INCONCLUSIVE, "v1.0"),
    ]  # fmt: skip


def test_a_screen_that_failed_for_another_reason_fails_the_gate():
    """Whatever the comparison says of what the screen left open."""
    screened = verdicts(a=[cell(Outcome.INCONCLUSIVE)]).model_copy(update={"breach": "a teardown"})
    found = combined(screened, verdicts(a=[cell(Outcome.UNCHANGED)]), fail_on=frozenset())
    assert (found.failed, found.exit_code) == (True, 1)
    assert final_line(found) == "llmperf gate: FAILED: 1 of 1 gating cells decided: 1 unchanged; a teardown"


def test_what_was_asked_to_fail_does_so_where_the_screen_left_nothing_open():
    """A cell that the screen decided, and a test that is gone."""
    screened = verdicts(a=[cell(Outcome.IMPROVED)]).model_copy(update={"missing": ["t.py::gone"]})
    assert not combined(screened, None, fail_on=frozenset()).failed
    assert combined(screened, None, fail_on=frozenset({Outcome.IMPROVED})).exit_code == 1
    long_ago = verdicts(a=[cell(Outcome.IMPROVED, against="v1.0")])
    assert not combined(long_ago, None, fail_on=frozenset({Outcome.IMPROVED})).failed
    found = combined(screened, None, fail_on=frozenset({Outcome.MISSING}))
    assert (found.failed, found.breach) == (True, "no result of 1 test of the baseline")


def test_what_stays_open_fails_where_that_is_asked_and_never_reads_as_a_pass():
    """The gate's own ``--fail-on``, over both stages."""
    screened = verdicts(a=[cell(Outcome.INCONCLUSIVE)])
    lenient = combined(screened, verdicts(), fail_on=frozenset())
    assert (lenient.failed, "nothing was verified" in final_line(lenient)) == (False, True)
    assert combined(screened, verdicts(), fail_on=frozenset({Outcome.INCONCLUSIVE})).failed
