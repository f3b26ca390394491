"""An exact regression of a user's project explains itself by the counted work, in every output of the run."""

from __future__ import annotations

import json
import subprocess

import pytest
from perf_project import FAKE_CLOCK

from pytest_llmperf.storage.schema import PhaseWork, StepCounts
from pytest_llmperf.verdict.verdict_file import read_verdicts

KNOWN_WORK = """
import json

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
LINE = "decode: +13 operators a token: aten::mm 15 -> 27, aten::pow<\\x1b> 0 -> 1; FLOPs ×1.00; bytes ×2.00 (+1.00 MiB"


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
        "*- llmperf: counted work per token in decode, beside baseline* -*",
        f"{LINE.replace('[', '[[]')}: float32)",
        "bytes: 1.00 MiB -> 2.00 MiB",
        f"work: test_perf.py::test_decode*: {LINE}: float32)",
    ])  # fmt: skip
    (test,) = read_verdicts(project.path / "out.json").tests
    (change,) = test.work_changes
    assert [(one.name, one.before, one.after) for one in change.operators] == [
        ("aten::mm", 15.0, 27.0), ("aten::pow<\x1b>", 0.0, 1.0),
    ]  # fmt: skip
    assert test.explanations == ()
    page = (project.path / "page.html").read_text()
    assert "What changed: counted work per token in decode" in page
    assert "aten::pow&lt;\\x1b&gt; 0 -&gt; 1" in page
    assert not (project.path / ".llmperf" / "traces").exists()


def test_a_slower_test_with_the_same_work_says_so(counted):
    """The time went elsewhere. Other phases and unchanged tests say nothing."""
    for number in range(1, 5):
        assert counted(CLEAN, "--llmperf-measure-only", "--llmperf-update", session=f"session {number}").ret == 0
    result = counted(CLEAN, "--llmperf-confirm=1", step_ms=1.5)
    assert result.ret == 1
    assert lines_with(result, "the same operators, FLOPs and bytes") == [
        "decode: the same operators, FLOPs and bytes",
        "work: test_perf.py::test_decode[fp32]: decode: the same operators, FLOPs and bytes",
    ]
    assert "counted work" not in counted(CLEAN).stdout.str()


def test_work_that_changed_leads_the_explanation_of_a_slower_test(counted):
    """It is exact, unlike the profiler's times."""
    for number in range(1, 5):
        assert counted(CLEAN, "--llmperf-measure-only", "--llmperf-update", session=f"session {number}").ret == 0
    result = counted(CHANGED, "--llmperf-confirm=1", "--llmperf-explain=on", step_ms=1.5)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*- llmperf: counted work *", "decode: +13 *", "*- llmperf: time per token *"])


def test_a_baseline_without_counted_work_says_what_would_store_it(counted, project):
    """Older baselines have none."""
    path = project.baseline()
    stored = json.loads(path.read_text())
    path.write_text(json.dumps(stored | {"work": []}))
    result = counted(CHANGED, GATED, MORE_PRODUCTS)
    assert result.ret == 1
    words = "decode: work not compared: baseline: it has no counted work of this workload; recording a run stores it"
    assert len(lines_with(result, words)) == 2


def test_a_change_since_an_anchor_is_compared_with_the_work_stored_there(counted, project):
    """If that is the work of the present baseline, it is told once."""
    for command in (["init"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-m", "one"]):
        subprocess.run(["git", *command], cwd=project.path, check=True, capture_output=True)
    result = counted(CHANGED, GATED, MORE_PRODUCTS, "--llmperf-anchor=HEAD")
    assert len(lines_with(result, "- llmperf: counted work ")) == 1
    project.baseline().unlink()
    result = counted(CHANGED, GATED, MORE_PRODUCTS, "--llmperf-anchor=HEAD")
    (title,) = lines_with(result, "- llmperf: counted work ")
    assert title.strip("- ") == "llmperf: counted work per token in decode, beside baseline since HEAD"


def test_a_real_run_counts_what_it_explains(project):
    """From a recorded run to a regression, with nothing replaced."""
    project.write()
    assert project.run("--llmperf-measure-only", "--llmperf-update").ret == 0
    result = project.run(GATED, MORE_PRODUCTS)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["decode: +* operators a token: *aten::mm 15 -> 27*", "work: *aten::mm 15 -> 27*"])
