"""Run every command of the documentation, in order, in a matching project: ``nox -s commands``.

It takes minutes, so plain ``pytest`` does not collect it. ``test_tutorial.py`` runs the tutorial.
"""

from __future__ import annotations

import re
import shutil
import socket
from pathlib import Path

import pytest
from real_server import free_port, running
from user_shell import run_script, user_environment

from pytest_llmperf.models.synthetic import prepare

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "baselines" / "README.md"]
PROGRAMS = r"(?:llmperf|pytest|pytest-benchmark|pip|nox|python|transformers|torchrun|vllm|curl) "
NOT_HERE = {
    r"pip (un)?install": "the sessions of nox install",
    r"pip (wheel|download)": "for a machine without network",
    r"python benchmarks/": "a GPU: tests/benchmarks/test_gpu_day.py runs it on a CPU",
    r".*--llmperf-engine vllm": "nox -s vllm",
    r"vllm serve": "several GPUs or nodes: not run, docs/scale.md says so",
    r".*10\.0\.0\.1": "several nodes: not run, docs/scale.md says so",
    r"pytest .*-n [24]$": "several GPUs: tests/runner/test_xdist.py, by devices that are made up",
    r".*--llmperf-revision": "the hub: tests/models/test_model_source.py, by a cache that is made up",
    r"curl": "a Pushgateway: tests/report/test_exports.py parses what is sent",
    r"torchrun|transformers serve|.*--llmperf-engine openai": "below, server and client together",
}
STANDS_FOR = {
    r"--device cuda": "--device cpu",
    r"--llmperf-model ORG/NAME": '--llmperf-model="$MODEL"',  # a hub's name is no path
    r"ORG/NAME": '"$MODEL"',
    r"\bTEST\b": "'test_decode[nf4]'",
}
TESTS = """
import pytest


@pytest.mark.parametrize("llm", ["fp32", "nf4"], indirect=True)
def test_decode(llm, llmperf):
    llmperf.generate(llm)
"""
# Exact metrics decide at once, whatever else the machine does meanwhile.
SETTINGS = """
[pytest]
testpaths = tests
llmperf_model = synthetic:tiny
llmperf_quantization = nf4
llmperf_input_tokens = 4
llmperf_output_tokens = 4
llmperf_requests = 2
llmperf_warmup = 1
llmperf_serve_requests = 2
llmperf_throughput_sequences = 2
llmperf_guards = none
llmperf_gate = operators_per_token
"""
PREPARED = """
git init --quiet --initial-branch main
git add .
git commit --quiet --message one
git tag v1.0
llmperf record --runs 2 --device cpu
git add .
git commit --quiet --message baseline
mkdir perf
cp -R baselines perf/baselines
pytest --llmperf --device cpu --llmperf-verdicts verdicts.json --llmperf-journal run.jsonl
git switch --quiet --create work
"""


def shown(page: Path) -> list[str]:
    """Return the commands in code blocks, in workflows, and in tables whose last column is a command."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    blocks = [
        *(block for language, block in fenced if language in ("", "sh", "yaml")),
        *re.findall(r"^ {4,}(?=\w).*$", text, re.MULTILINE),
        *re.findall(r"(?<=\| `)[^`]+(?=` \|$)", text, re.MULTILINE),
    ]
    lines = [line.strip().removeprefix("- ").removeprefix("run: ") for block in blocks for line in block.splitlines()]
    commands = [line.partition(" #")[0].strip() for line in lines if re.match(PROGRAMS, line)]
    return [re.sub(r" {2,}", " ", command) for command in dict.fromkeys(commands)]


def runs_here(command: str) -> bool:
    return not any(re.match(pattern, command) for pattern in NOT_HERE)


def as_typed(command: str) -> str:
    for name, thing in STANDS_FOR.items():
        command = re.sub(name, thing, command)
    return command


RUN = [page for page in PAGES if page.name != "tutorial.md" and any(map(runs_here, shown(page)))]


@pytest.fixture(scope="module")
def environment(model_cache, tmp_path_factory) -> dict[str, str]:
    """A user's environment, plus the variables of a step in GitHub Actions."""
    temporary = tmp_path_factory.mktemp("runner")
    return user_environment(
        MODEL=str(prepare("synthetic:tiny")),
        RUNNER_TEMP=str(temporary),
        GITHUB_STEP_SUMMARY=str(temporary / "summary.md"),
    )


@pytest.fixture(scope="module")
def prepared(environment, tmp_path_factory) -> Path:
    """A project with a baseline, verdicts, its own model, and a branch besides ``main``."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "tests" / "perf").mkdir(parents=True)
    (folder / "tests" / "perf" / "test_perf.py").write_text(TESTS, encoding="utf-8")
    (folder / "pytest.ini").write_text(SETTINGS, encoding="utf-8")
    (folder / ".gitignore").write_text("checkpoints/\n.llmperf/\n__pycache__/\n", encoding="utf-8")
    shutil.copytree(environment["MODEL"], folder / "checkpoints" / "latest")
    run(PREPARED, folder, environment)
    return folder


@pytest.fixture
def project(prepared, tmp_path) -> Path:
    return shutil.copytree(prepared, tmp_path / "project")


def run(script: str, folder: Path, environment: dict[str, str]) -> None:
    """Run a command, which must succeed."""
    ended = run_script(script, folder, environment)
    assert ended.returncode == 0, f"{script}\n{ended.stdout}\n{ended.stderr}"


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_the_commands_of_a_page_end_well(page, project, environment):
    """They run in the order of the page."""
    for command in filter(runs_here, shown(page)):
        run(as_typed(command), project, environment)


def servers() -> list[tuple[str, str]]:
    """Return each server on one machine, with the command that measures it: the next on the page, or else the last."""
    commands = shown(ROOT / "docs" / "scale.md")
    clients = {at: one for at, one in enumerate(commands) if re.match(r"pytest .*127\.0\.0\.1", one)}
    starts = {at: one for at, one in enumerate(commands) if re.match(r"transformers serve|torchrun", one)}
    return [(one, clients[min((c for c in clients if c > at), default=max(clients))]) for at, one in starts.items()]


@pytest.mark.parametrize(("server", "client"), servers(), ids=lambda command: command.split()[0])
def test_a_server_is_measured_as_the_page_shows(server, client, project, environment):
    """The server uses a free port."""
    port = free_port()
    (project / "docs").symlink_to(ROOT / "docs")
    server, client = (as_typed(command).replace("8000", str(port)) for command in (server, client))
    command, log = ["bash", "-c", f"exec {server}"], project / "server.log"
    with running(command, log, ready=lambda: answers(port), cwd=project, env=environment):
        # The server has one model, the project's settings name another; serve_tp.py does not sample. On a busy machine
        # the few tokens of the project's tests arrive all at once, which has no TPOT.
        settings = "-o llmperf_model= -o llmperf_output_tokens=32"
        run(f"{client} {settings} --pyargs pytest_llmperf.suite.serving -k schedulers", project, environment)


def answers(port: int) -> bool:
    with socket.socket() as trial:
        return trial.connect_ex(("127.0.0.1", port)) == 0


def test_what_does_not_run_here_is_shown():
    """Each listed exception is still on a page."""
    commands = [command for page in PAGES for command in shown(page)]
    assert [pattern for pattern in NOT_HERE if not any(re.match(pattern, command) for command in commands)] == []
