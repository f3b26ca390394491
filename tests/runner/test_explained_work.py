"""An exact regression of a user's project explains itself by the counted work, in every output of the run."""

from __future__ import annotations

import json
import subprocess
from html import escape

import pytest
from perf_project import FAKE_CLOCK

from pytest_llmperf.report.github import comment
from pytest_llmperf.report.why_text import why_text
from pytest_llmperf.storage.schema import PhaseWork, StepCounts
from pytest_llmperf.verdict.verdict_file import read_verdicts

KNOWN_WORK = """
import json

from pytest_llmperf.report.github import comment
from pytest_llmperf.report.why_text import why_text
from pytest_llmperf.storage.schema import PhaseWork

_measured = bench.test_result


def _with_known_work(*args, **more):
    work = {phase: PhaseWork(**known) for phase, known in json.loads(os.environ["KNOWN_WORK"]).items()}
    return _measured(*args, **more).model_copy(update={"work": work})


bench.test_result = _with_known_work
"""
"""A conftest in which each measurement counts the work of an environment variable."""

GATED = "--llmperf-gate=operators_per_token"
MORE_PRODUCTS = "--llmperf-inject=work:+150%"
"""More operators per token; what these tests say of them is the known work."""


def phase(operators, moved):
    step = StepCounts(operators=sum(operators.values()), flops=0.0, bytes=moved, allocations=2.0, allocated_bytes=64.0)
    return PhaseWork(
        steps=3, operators=operators, flops={"float32": 2e6}, bytes={"float32": moved}, allocations=2.0,
        allocated_bytes=64.0, first=step, last=step,
    )  # fmt: skip


CLEAN = {"prefill": phase({"aten::mm": 15.0}, 2.0**20), "decode": phase({"aten::mm": 15.0}, 2.0**20)}
CHANGED = CLEAN | {"decode": phase({"aten::mm": 27.0, "aten::pow<\x1b>": 1.0}, 2.0**21)}
LINE = (
    "decode: +13 operators a token: aten::mm 15 -> 27, aten::pow<\\x1b> 0 -> 1; FLOPs ×1.00; "
    "bytes ×2.00 (+1.00 MiB: float32)"
)
SAME = (
    "decode: the same operators, FLOPs and bytes: each takes longer, or something outside of them changed "
    "(clocks, allocator, host)"
)


@pytest.fixture
def counted(project):
    """A project with a recorded run, and how to run it with other counted work."""
    project.write(conftest=FAKE_CLOCK + KNOWN_WORK)

    def run(work, *arguments, **more):
        known = {name: json.loads(phase.model_dump_json()) for name, phase in work.items()}
        project.monkeypatch.setenv("KNOWN_WORK", json.dumps(known))
        return project.run(*arguments, **more)

    assert run(CLEAN, "--llmperf-measure-only", "--llmperf-update").ret == 0
    return run


def committed(folder, subject, **files):
    """Commit everything, and return the commit."""
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    identity = ("-c", "user.name=Jane Doe", "-c", "user.email=a@b.c")
    git = ["git", *identity]
    if not (folder / ".git").exists():
        (folder / ".gitignore").write_text("__pycache__/\n.pytest_cache/\n.llmperf/\n")
        subprocess.run([*git, "init", "-q"], cwd=folder, check=True)
    subprocess.run([*git, "add", "."], cwd=folder, check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", subject], cwd=folder, check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], cwd=folder, check=True, capture_output=True, text=True)
    return head.stdout.strip()


def lines_with(result, words):
    return [line for line in result.outlines if words in line]


@pytest.mark.parametrize("how", [(), ("--llmperf-isolate",)], ids=["in this process", "isolated"])
def test_a_counted_regression_names_the_operators_everywhere(counted, project, how):
    """In the failed test, the summary, the verdict file, the page and the comment; with no profiler."""
    outputs = ("--llmperf-verdicts=out.json", "--llmperf-report=page.html")
    result = counted(CHANGED, GATED, MORE_PRODUCTS, *outputs, *how)
    assert result.ret == 1
    result.stdout.fnmatch_lines([
        "*operators / token ×*",
        "*- llmperf: why -*",
        LINE,
        "counted work per token in decode, beside baseline:",
        "  bytes: 1.00 MiB -> 2.00 MiB",
        f"why: test_perf.py::test_decode*: {LINE}",
    ])  # fmt: skip
    (test,) = read_verdicts(project.path / "out.json").tests
    (change,) = test.why.work
    assert [(one.name, one.before, one.after) for one in change.operators] == [
        ("aten::mm", 15.0, 27.0), ("aten::pow<\x1b>", 0.0, 1.0),
    ]  # fmt: skip
    assert (test.why.cause.kind, test.why.cause.name, test.why.times) == ("work", "operators", ())
    page = (project.path / "page.html").read_text()
    text = escape(why_text(test.why, 100), quote=False)
    assert f'<h4>Why</h4>\n<pre class="table"><code>{text}</code></pre>' in page
    assert f"<pre>\n{text}\n</pre>" in comment(read_verdicts(project.path / "out.json"))
    assert not (project.path / ".llmperf" / "traces").exists()


def test_a_slower_test_with_the_same_work_says_so(counted):
    """The time went elsewhere. Other phases and unchanged tests say nothing."""
    for number in range(1, 5):
        assert counted(CLEAN, "--llmperf-measure-only", "--llmperf-update", session=f"session {number}").ret == 0
    result = counted(CLEAN, "--llmperf-confirm=1", step_ms=1.5)
    assert result.ret == 1
    assert lines_with(result, "the same operators, FLOPs and bytes") == [
        SAME,
        "counted work per token in decode, beside baseline: the same operators, FLOPs and bytes",
        f"why: test_perf.py::test_decode[fp32]: {SAME}",
    ]
    assert "counted work" not in counted(CLEAN).stdout.str()


def test_work_that_changed_leads_the_explanation_of_a_slower_test(counted):
    """It is exact, unlike the profiler's times, and twice the bytes explain half as much time again."""
    for number in range(1, 5):
        assert counted(CLEAN, "--llmperf-measure-only", "--llmperf-update", session=f"session {number}").ret == 0
    result = counted(CHANGED, "--llmperf-confirm=1", "--llmperf-explain=on", step_ms=1.5)
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        ["*- llmperf: why -*", "decode: bytes ×2.00 (+1.00 MiB: float32); +13 *", "counted work *", "time per token *"]
    )


def test_a_baseline_without_counted_work_says_what_would_store_it(counted, project):
    """Older baselines have none."""
    path = project.baseline()
    stored = json.loads(path.read_text())
    path.write_text(json.dumps(stored | {"work": []}))
    result = counted(CHANGED, GATED, MORE_PRODUCTS)
    assert result.ret == 1
    reason = "baseline: it has no counted work of this workload; recording a run stores it"
    assert lines_with(result, reason) == [
        f"not explained: {reason}",
        f"counted work per token in decode: not compared: {reason}",
        f"why: test_perf.py::test_decode[fp32]: not explained: {reason}",
    ]


def test_a_change_since_an_anchor_is_compared_with_the_work_stored_there(counted, project):
    """If that is the work of the present baseline, it is told once."""
    committed(project.path, "one")
    result = counted(CHANGED, GATED, MORE_PRODUCTS, "--llmperf-anchor=HEAD")
    assert len(lines_with(result, "counted work per token in decode")) == 1
    project.baseline().unlink()
    result = counted(CHANGED, GATED, MORE_PRODUCTS, "--llmperf-anchor=HEAD")
    (title,) = lines_with(result, "counted work per token in decode")
    assert title == "counted work per token in decode, beside baseline since HEAD:"


def test_a_real_run_counts_what_it_explains(project):
    """From a recorded run to a regression, with nothing replaced."""
    project.write()
    assert project.run("--llmperf-measure-only", "--llmperf-update").ret == 0
    result = project.run(GATED, MORE_PRODUCTS)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["decode: +* operators a token: *aten::mm 15 -> 27*", "why: *aten::mm 15 -> 27*"])


@pytest.fixture
def recorded(counted, project):
    """A run of one commit is recorded, and its baseline committed; returns the first commit."""
    project.baseline().unlink()
    first = committed(project.path, "first")
    assert counted(CLEAN, "--llmperf-measure-only", "--llmperf-update").ret == 0
    committed(project.path, "record")
    return first


def test_the_only_commit_since_the_recorded_run_is_named(counted, project, recorded):
    """That of the baseline changes no code. The commit is the last line, and in the verdict file."""
    now = committed(project.path, "Use \x1b[31m float64 @octocat", more="1")
    result = counted(CHANGED, GATED, MORE_PRODUCTS, "--llmperf-verdicts=out.json")
    assert result.ret == 1
    commit = f"commit: {now[:12]} Jane Doe: Use \\x1b[31m float64 @octocat"
    assert lines_with(result, "commit: ") == [commit]
    why = read_verdicts(project.path / "out.json").tests[0].why
    assert (why.code.base, why.code.now, why.code.between.only.hash) == (recorded, now, now)
    assert why_text(why, 80).split("\n")[-1] == commit


def test_several_commits_are_told_with_the_command_that_finds_the_one(counted, project, recorded):
    """The command has the test and the options that this run was given."""
    for number in range(3):
        now = committed(project.path, f"change {number}", more=str(number))
    result = counted(CHANGED, GATED, MORE_PRODUCTS)
    assert result.ret == 1
    (told, command) = (lines_with(result, words)[0] for words in (" commits between ", "  llmperf bisect "))
    assert told == f"3 commits between {recorded[:12]} and {now[:12]}: this finds the one:"
    start = f"  llmperf bisect {recorded[:12]} {now[:12]} -- 'test_perf.py::test_decode[fp32]' "
    assert command.startswith(start)
    assert "--llmperf-output-tokens=4" in command


def test_a_tree_that_was_edited_has_no_commit_yet(counted, project, recorded):
    """No commit is blamed for it."""
    now = committed(project.path, "change", more="1")
    (project.path / "more.py").write_text("2")
    result = counted(CHANGED, GATED, MORE_PRODUCTS)
    told = f"changes in the working tree on {now[:12]}, and 1 commit since {recorded[:12]}"
    assert lines_with(result, "commit: ") == [f"commit: none yet, {told}"]


def test_a_run_of_the_same_code_has_no_commit(counted, recorded):
    """Something else changed; the commit of the baseline is none."""
    (line,) = lines_with(counted(CHANGED, GATED, MORE_PRODUCTS), "commit: ")
    assert line.startswith(f"commit: none between {recorded[:12]} and ")
    assert line.endswith(" that changes more than baselines")


def test_a_regression_of_nothing_that_is_counted_or_profiled_leads_with_the_commit(counted, project, recorded):
    """Weights, for example. Without a repository, it says that nothing is known."""
    now = committed(project.path, "Load twice", more="1")
    heavier = ("--llmperf-gate=weights", "--llmperf-inject=weights:+20000%")
    result = counted(CLEAN, *heavier)
    assert result.ret == 1
    line = f"commit: {now[:12]} Jane Doe: Load twice"
    assert lines_with(result, line) == [line, f"why: test_perf.py::test_decode[fp32]: {line}"]
    (project.path / ".git").rename(project.path / "elsewhere")
    assert lines_with(counted(CLEAN, *heavier), "not explained: ") == [
        "not explained: nothing is counted or profiled of weights",
        "why: test_perf.py::test_decode[fp32]: not explained: nothing is counted or profiled of weights",
    ]
