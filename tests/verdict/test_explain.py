"""Explanation of a confirmed regression from two profiles: the stored one and a present one."""

from __future__ import annotations

import json
import subprocess
from types import SimpleNamespace

import pytest
from perf_project import FAKE_CLOCK

from pytest_llmperf.errors import BaselineError
from pytest_llmperf.runner import profiling
from pytest_llmperf.storage.profiles import keep_profiles, load_profiles, profiles_path
from pytest_llmperf.storage.schema import OperatorTime, PhaseProfile, Run
from pytest_llmperf.verdict.verdict_file import read_verdicts

QUIET_MACHINE = (1.0, 1.01, 0.99, 1.0, 1.005)
MORE_PRODUCTS = "--llmperf-inject=work:+150%"
"""Twelve more products per step; by the tests' clock a step takes 1 ms and a product an eighth of it."""

DIES = """
import sys

if any(word.startswith("--llmperf-profile") for word in sys.argv):
    raise RuntimeError("no")
"""


def test_from_a_recorded_run_to_an_explained_regression(project):
    """The profile is recorded once a session, compared after a regression, shown below its failure, and written."""
    project.write()
    project.record(*QUIET_MACHINE)
    recording = ("--llmperf-update", "--llmperf-measure-only", "--llmperf-explain=on")
    result = project.run(*recording, session="today")
    result.stdout.fnmatch_lines(["operator profiles of 1 workload kept: */baselines/profiles/*.json"])
    result = project.run(*recording, session="today")
    result.stdout.no_fnmatch_line("operator profiles*")
    result = project.run(
        "--llmperf-confirm=1", "--llmperf-explain=on", MORE_PRODUCTS, "--llmperf-verdicts=out.json", step_ms=1.5
    )
    assert result.ret == 1
    result.stdout.fnmatch_lines([
        "llmperf: profiling test_perf.py::test_decode[[]fp32]",
        "TPOT ×1.* [[]*[]]: 1.50 ms > 1.00 ms baseline, *",
        "*- llmperf: why -*",
        "decode: *aten::mm 15 -> 27*",
        "time per token in decode: * with baseline, * now (profiling takes time):",
        "  operator * base * now * change * calls",
        "  aten::mm * 15 -> 27",
        "  traces: .llmperf/traces/*",
    ])  # fmt: skip
    (test,) = read_verdicts(project.path / "out.json").tests
    (explained,) = test.why.times
    (products,) = (one for one in explained.operators if one.name == "aten::mm")
    assert (products.base_calls, products.now_calls) == (15, 27)
    assert {path.name.rpartition("-")[2] for path in (project.path / ".llmperf/traces").glob("*/*.gz")} == {
        "prefill.json.gz", "decode.json.gz",
    }  # fmt: skip


def test_a_regression_without_a_stored_profile_says_what_would_store_one(project):
    """The verdict does not change, and nothing is profiled."""
    project.write()
    project.record(*QUIET_MACHINE)
    result = project.run("--llmperf-confirm=1", "--llmperf-explain=on", step_ms=1.5)
    assert result.ret == 1
    result.stdout.fnmatch_lines([
        "TPOT ×1.* [[]*[]]: 1.50 ms > 1.00 ms baseline, *",
        "time per token in decode: not explained: baseline: no profile is stored; recording a run *",
    ])  # fmt: skip
    assert not (project.path / ".llmperf" / "traces").exists()


def test_a_profiled_run_measures_little_and_writes_traces(project):
    """``--llmperf-profile`` alone makes one timed request, and writes the profile beside the figures."""
    project.write()
    assert project.run("--llmperf-measure-only", "--llmperf-profile=traces", "--llmperf-json=out").ret == 0
    assert len(list((project.path / "traces").iterdir())) == 2
    (written,) = (project.path / "out").glob("*.json")
    (result,) = json.loads(written.read_text())["results"]
    assert result["observation"]["requests"] == 1
    assert {one["name"] for one in result["profile"]["decode"]["operators"]} >= {"aten::mm", "(outside of operators)"}


@pytest.mark.parametrize("more", [(), ("--llmperf-measure-only", "--llmperf-update")], ids=["compared", "recorded"])
def test_a_profiled_run_is_never_taken_for_a_measurement(project, more):
    """Profiling without ``--llmperf-measure-only`` is an error before anything is loaded."""
    project.write()
    result = project.run("--llmperf-profile=traces", *more)
    assert result.ret == 4
    result.stderr.fnmatch_lines(
        ["*--llmperf-profile: times of a profiled run cannot be compared: add --llmperf-measure-only*"]
    )


def run(name="now", **more):
    facts = {"session_id": "s", "time": "t", "commit": "c", "dirty": False, "environment": {"torch": "2.13"}}
    return Run(run_id=name, **(facts | more))


@pytest.fixture
def workplace(tmp_path):
    """A workplace with profiles stored by a run of commit ``c``."""
    path = profiles_path(tmp_path, "cpu")
    phases = {"decode": PhaseProfile(wall_ms=1.0, operators=[OperatorTime(name="aten::mm", self_ms=1.0, calls=1.0)])}
    keep_profiles(path, "cpu", run("then"), {("test", "w"): phases}, of={("test", "w")})
    options = SimpleNamespace(baselines=tmp_path, baseline_ref=None, explain=True)
    return SimpleNamespace(options=options, device_key="cpu", run=run(), path=path)


def test_the_stored_side_is_named_and_comes_from_a_like_environment(workplace, tmp_path):
    """A profile of another environment is not used, and the reason is given."""
    config = SimpleNamespace(rootpath=tmp_path)
    stored = profiling._stored(config, workplace)
    assert (stored.name, list(stored.found)) == ("baseline of c", [("test", "w")])
    workplace.run = run(environment={"torch": "2.14"})
    assert profiling._stored(config, workplace).why_not == "its profiles are from another environment"
    workplace.path.write_text("{}")
    with pytest.raises(BaselineError):
        profiling._stored(config, workplace)


def test_the_stored_side_is_that_of_the_revision_whose_baseline_was_read(workplace, tmp_path):
    """Later changes of the file do not matter; a revision without a file has no profiles."""
    for command in (["init"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-m", "one"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True, capture_output=True)
    config = SimpleNamespace(rootpath=tmp_path)
    workplace.options.baseline_ref = "HEAD"
    workplace.path.write_text("{}")
    assert list(profiling._stored(config, workplace).found) == [("test", "w")]
    workplace.device_key = "another"
    assert profiling._stored(config, workplace).why_not == profiling.NO_PROFILE


@pytest.mark.parametrize(
    ("now", "known"),
    [
        (run(session_id="later"), True),
        (run(commit="d"), False),
        (run(dirty=True), False),
        (run(environment={"torch": "2.14"}), False),
    ],
    ids=["same commit", "another commit", "edited", "another environment"],
)
def test_what_was_profiled_at_this_commit_is_not_profiled_again(workplace, now, known):
    """Recording five runs costs one profiled process."""
    file = load_profiles(workplace.path)
    assert profiling._is_of(file.runs[0], now) is known
    edited = run(dirty=True, session_id="one")
    assert profiling._is_of(edited, run(dirty=True, session_id="one"))
    assert not profiling._is_of(edited, run(dirty=True, session_id="two"))


def test_a_profiled_process_that_dies_says_so_and_changes_no_verdict(project):
    """The recorded figures are kept as well."""
    project.write(conftest=DIES + FAKE_CLOCK)
    result = project.run("--llmperf-update", "--llmperf-measure-only", "--llmperf-explain=on")
    assert result.ret == 0
    result.stdout.fnmatch_lines([
        "baseline updated: *", "operator profiles NOT stored: not profiled: exit code 4, *no*profile.log)",
    ])  # fmt: skip
