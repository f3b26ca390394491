"""Workflows, actions and the documentation's YAML: pinned actions, permissions and valid commands."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from report_data import baseline
from sample_verdicts import SAMPLE

from pytest_llmperf.cli import _parser
from pytest_llmperf.report.github import comment
from pytest_llmperf.storage.baseline_file import dump_baseline, load_baseline
from pytest_llmperf.verdict.verdict_file import write_verdicts

ROOT = Path(__file__).parents[2]
FILES = [*(ROOT / ".github" / "workflows").glob("*.yml"), ROOT / "action.yml", ROOT / "comment" / "action.yml"]
SNIPPETS = [
    (f"{page.name} {number}", text)
    for page in (ROOT / "README.md", ROOT / "docs" / "github.md", ROOT / "docs" / "exports.md")
    for number, text in enumerate(re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))
]
EVERY = [*((str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")) for path in FILES), *SNIPPETS]
WORKFLOWS = [(name, text) for name, text in EVERY if "\njobs:" in text]

every = pytest.mark.parametrize("text", [text for _, text in EVERY], ids=[name for name, _ in EVERY])
workflows = pytest.mark.parametrize("text", [text for _, text in WORKFLOWS], ids=[name for name, _ in WORKFLOWS])


def steps(text: str) -> list[dict]:
    document = yaml.safe_load(text)
    if isinstance(document, list):  # a snippet of steps
        return document
    if "runs" in document:
        return document["runs"]["steps"]
    return [step for job in document["jobs"].values() for step in job["steps"]]


@every
def test_foreign_actions_are_pinned_by_commit_with_their_version(text):
    """A tag can be moved, a commit cannot."""
    used = re.findall(r"uses: (\S+)(.*)", text)
    foreign = [(name, rest) for name, rest in used if not name.startswith("./")]
    assert [name for name, rest in foreign if not re.search(r"@[0-9a-f]{40}$", name)] == []
    assert [rest for _, rest in foreign if not re.match(r" # v\d+\.\d+\.\d+", rest)] == []


@every
def test_no_expression_is_written_into_a_shell_line(text):
    """Values from a pull request are passed through the environment."""
    assert [step["run"] for step in steps(text) if "${{" in step.get("run", "")] == []


@every
def test_every_llmperf_command_is_one(text):
    """Commands and their options exist."""
    script = "\n".join(step.get("run", "") for step in steps(text))
    for line in re.findall(r"^ *llmperf (.*?)(?: \|\|)?$", script, re.MULTILINE):
        assert_known(shlex.split(line.partition(" -- ")[0]))


def assert_known(words: list[str]) -> None:
    options, found = _parser().parse_known_args(words)
    unknown = [word for word in found if not word.endswith("[@]}")]  # optional further options
    assert not unknown or options.passes_on == "all", words


@workflows
def test_a_job_may_only_what_it_needs(text):
    """Permissions are empty by default, and only jobs on GitHub's own machines may write."""
    document = yaml.safe_load(text)
    assert set(document["permissions"].values() if document["permissions"] else []) <= {"read"}
    for job in document["jobs"].values():
        own = "self-hosted" in job["runs-on"]
        assert not own or set(job.get("permissions", {}).values()) <= {"read"}
    assert all(
        step["with"]["persist-credentials"] is False for step in steps(text) if "checkout@" in step.get("uses", "")
    )


@workflows
def test_a_machine_of_ones_own_has_one_job_at_a_time_and_no_foreign_code(text):
    """All workflows share a concurrency group; waiting jobs are not cancelled."""
    document = yaml.safe_load(text)
    triggers = document[True]  # YAML 1.1 parses "on" as true
    assert "pull_request_target" not in triggers
    assert "workflow_run" not in triggers
    for job in document["jobs"].values():
        if "self-hosted" in job["runs-on"]:
            assert job["concurrency"]["group"].startswith("llmperf-")
            assert job["concurrency"]["queue"] == "max"
            same = "github.event.pull_request.head.repo.full_name == github.repository"
            assert "pull_request" not in triggers or same in job["if"]


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A step's environment with commands that record their calls."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, body in {"llmperf": LLMPERF, "gh": GH}.items():
        (commands / name).write_text(f"#!/usr/bin/env bash\n{body}", encoding="utf-8")
        (commands / name).chmod(0o755)
    monkeypatch.chdir(tmp_path)
    return {
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT),
        "CALLS": str(tmp_path / "calls"),
        "RUNNER_TEMP": str(tmp_path / "temp"),
        "GITHUB_REPOSITORY": "o/r",
    }


LLMPERF = """
printf '%s\\n' "llmperf" "$@" >> "$CALLS"
if [ "$1" = gate ]; then exit "${GATE:-0}"; fi
if [[ "$*" == *html* && -n "$PAGE" ]]; then exit "$PAGE"; fi
exec "$PYTHON" -m pytest_llmperf "$@"
"""
GH = """
printf '%s\\n' "gh" "$@" >> "$CALLS"
if [ "$2" = --paginate ]; then printf '%s' "$IDS"; fi
"""


def run(script: str, environment: dict[str, str]) -> tuple[int, list[str]]:
    done = subprocess.run(["bash", "-e", "-o", "pipefail", "-c", script], env=environment, check=False)
    calls = Path(environment["CALLS"])
    return done.returncode, calls.read_text().splitlines() if calls.exists() else []


def script_of(action: str, step: str) -> str:
    found, *_ = [one["run"] for one in steps((ROOT / action).read_text(encoding="utf-8")) if one.get("name") == step]
    return found


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("", []),
        ("--device cuda\ntests/perf", ["--device", "cuda", "tests/perf"]),
        (
            "-k 'a or b' $(touch owned) `touch owned` ; *",
            ["-k", "a or b", "$(touch", "owned)", "`touch", "owned`", ";", "*"],
        ),
    ],
)
def test_the_gates_arguments_are_split_and_never_executed(job, arguments, words):
    """Quotes keep blanks together, and lines are joined."""
    found = run(script_of("action.yml", "Gate"), {**job, "ARGUMENTS": arguments, "BUDGET": "20m", "STRICT": "true"})
    options = ["--verdicts", f"{job['RUNNER_TEMP']}/llmperf/verdicts.json", "--budget", "20m", "--strict"]
    assert found == (0, ["llmperf", "gate", *options, "--", *words])
    assert_known(["gate", *options])
    assert not Path("owned").exists()


def test_arguments_that_cannot_be_split_stop_the_gate(job):
    """Running fewer tests than intended must not pass."""
    code, calls = run(script_of("action.yml", "Gate"), {**job, "ARGUMENTS": "-k 'a", "BUDGET": "", "STRICT": ""})
    assert code
    assert calls == []


def test_a_gate_that_left_no_verdicts_is_told(job):
    """Verdicts of an earlier job are not used."""
    assert run(script_of("action.yml", "Tell"), job) == (1, [])


def test_what_the_gate_tells_is_in_its_artifact(job):
    """The artifact has verdicts, page and kept files; annotations and summary are beside it."""
    folder = Path(job["RUNNER_TEMP"]) / "llmperf"
    write_verdicts(folder / "verdicts.json", SAMPLE)
    Path(".llmperf/runs").mkdir(parents=True)
    code, _ = run(script_of("action.yml", "Tell"), {**job, "GITHUB_STEP_SUMMARY": "summary.md"})
    assert code == 0
    assert sorted(path.name for path in folder.iterdir()) == ["kept", "report.html", "verdicts.json"]
    assert "<script" in (folder / "report.html").read_text(encoding="utf-8")
    assert Path("summary.md").read_text(encoding="utf-8").startswith("\n### llmperf: FAILED")


def test_a_gate_that_can_make_no_page_tells_so_and_goes_on(job, capfd):
    """A missing extra, for example, must not fail a pull request."""
    write_verdicts(Path(job["RUNNER_TEMP"]) / "llmperf" / "verdicts.json", SAMPLE)
    code, _ = run(script_of("action.yml", "Tell"), {**job, "GITHUB_STEP_SUMMARY": "summary.md", "PAGE": "4"})
    assert code == 0
    assert "::notice title=llmperf::the artifact has no report.html" in capfd.readouterr().out


def test_the_page_takes_its_history_from_where_it_is_told(job):
    """The folder can be the merge base's, which the pull request cannot change."""
    write_verdicts(Path(job["RUNNER_TEMP"]) / "llmperf" / "verdicts.json", SAMPLE)
    environment = {**job, "GITHUB_STEP_SUMMARY": "summary.md", "PAGE": "4", "BASELINES": "the base's"}
    code, calls = run(script_of("action.yml", "Tell"), environment)
    assert (code, calls[-2:]) == (0, ["--baselines", "the base's"])


@pytest.fixture
def main_branch(job):
    """A step after the checkout: a remote repository with a baseline, its local clone, and new records."""
    temporary = Path(job["RUNNER_TEMP"])
    (temporary / "recorded" / "profiles").mkdir(parents=True)
    (temporary / "recorded" / "profiles" / "fake.json").write_text("{}", encoding="utf-8")
    for name in ("new.json", "known.json"):
        (temporary / "recorded" / name).write_text(dump_baseline(baseline()), encoding="utf-8")
    git("init", "-q", "--bare", "-b", "main", "origin.git")
    git("clone", "-q", "origin.git", "other")
    Path("other", "baselines").mkdir()
    Path("other", "baselines", "known.json").write_text(dump_baseline(baseline()), encoding="utf-8")
    push_from_other("first")
    git("clone", "-q", "origin.git", "here")
    return {**job, "GITHUB_SHA": "c0ffee" * 7}


def git(*words: str, folder: str = ".") -> str:
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *words]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def push_from_other(name: str) -> None:
    """Push a commit to the remote, as another merge would."""
    Path("other", name).write_text(name, encoding="utf-8")
    git("add", ".", folder="other")
    git("commit", "-qm", name, folder="other")
    git("push", "-q", "origin", "HEAD:main", folder="other")


def merge_and_push(environment: dict[str, str], monkeypatch) -> int:
    monkeypatch.chdir("here")
    code, _ = run(script_of(".github/workflows/perf-baseline.yml", "Merge and push"), environment)
    monkeypatch.chdir("..")
    return code


def kept() -> Path:
    """Return what the remote main branch holds."""
    git("clone", "-q", "origin.git", "after")
    return Path("after", "baselines")


MOVING = """#!/bin/sh
cat > /dev/null
cd ../other
if [ "$(git rev-list --count HEAD)" -gt "$MOVES" ]; then exit 0; fi
unset $(git rev-parse --local-env-vars)
git pull -q origin main
git -c user.name=a -c user.email=a@b.c commit -q --allow-empty -m moved
git push -q origin HEAD:main
"""


def test_what_main_recorded_joins_what_is_there(main_branch, monkeypatch):
    """New and known devices and the latest profiles are added on top of commits pushed meanwhile."""
    push_from_other("second")
    assert merge_and_push(main_branch, monkeypatch) == 0
    assert len(load_baseline(kept() / "new.json").runs) == 12
    assert len(load_baseline(Path("after", "baselines", "known.json")).runs) == 12
    assert Path("after", "baselines", "profiles", "fake.json").exists()
    assert git("log", "--format=%s", folder="after").split("\n")[:-1] == ["Baseline of c0ffeec0ffee", "second", "first"]


def test_a_baseline_that_is_there_already_is_no_commit(main_branch, monkeypatch):
    """A repeated job makes no commit."""
    assert [merge_and_push(main_branch, monkeypatch) for _ in range(2)] == [0, 0]
    assert git("rev-list", "--count", "main", folder="origin.git").strip() == "2"


@pytest.mark.parametrize(("moves", "code"), [(1, 0), (2, 0), (99, 1)], ids=["once", "twice", "always"])
def test_a_main_that_moves_between_fetch_and_push_is_merged_with_again(main_branch, monkeypatch, moves, code):
    """An hour of measurements is not lost; after three attempts the job fails, and the artifact has the records."""
    hook = Path("here", ".git", "hooks", "pre-push")
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(MOVING, encoding="utf-8")
    hook.chmod(0o755)
    assert merge_and_push({**main_branch, "MOVES": str(moves)}, monkeypatch) == code
    assert (kept() / "new.json").exists() is not bool(code)
    assert git("log", "--format=%s", folder="after").count("moved") == min(moves, 3)


@pytest.mark.parametrize(
    ("ids", "method", "place"),
    [("", "POST", "repos/o/r/issues/5/comments"), ("11\n12", "PATCH", "repos/o/r/issues/comments/11")],
    ids=["first", "later"],
)
def test_a_pull_request_has_one_comment_that_is_updated(job, ids, method, place):
    """The marker in the first line identifies it."""
    Path(job["RUNNER_TEMP"]).mkdir()
    write_verdicts(Path("verdicts.json"), SAMPLE)
    environment = {**job, "VERDICTS": "verdicts.json", "NUMBER": "5", "IDS": ids}
    code, calls = run(script_of("comment/action.yml", "Comment"), environment)
    body = Path(job["RUNNER_TEMP"]) / "llmperf-comment.md"
    assert code == 0
    assert calls[-8:] == ["gh", "api", "--silent", "--method", method, place, "--field", f"body=@{body}"]
    assert body.read_text(encoding="utf-8") == comment(SAMPLE)
