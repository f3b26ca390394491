"""How long ``llmperf ab`` takes to decide an A/A comparison, beside an earlier revision of this package.

Both revisions are installed into environments of their own over this one. Each compares an empty commit with itself:
the ready-made suite, with the options after ``--``. They run at the same time, each on half of the cores, so that both
meet the same noise (Linux only). Prints the wall and CPU time, the blocks, and how many primary cells were decided::

    python benchmarks/decision_time.py --before REVISION [--budget 20m] -- --llmperf-model=synthetic:tiny

How long a decision takes depends on how much times scatter. With ``--spread 1`` the processes do their work, but a
played clock gives the times: ``--token-ms`` a token, times a factor of each test in each process that scatters by 1 %,
and 1 % more from request to request. The guards are off, because the machine does not matter to a played clock. A token
should take about what a real one does, because `llmperf ab` chooses the number of requests by what they cost.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import psutil

from pytest_llmperf.metrics import PRIMARY

HERE = Path(__file__).parents[1]
PLAYED = """
import math
import random

import pytest_llmperf.measure.bench as bench

CHANCE = random.SystemRandom()


def scatter():
    return math.exp(CHANCE.gauss(0, {spread}))


class PlayedClock:
    name = "played"
    of_test = now = 0.0
    asked = 0

    def stamp(self):
        if self.asked % 16 == 0:
            self.of_request = scatter()
        self.asked += 1
        self.now += {token_ms} * self.of_test * self.of_request
        return self.now

    def synchronize(self):
        pass

    def elapsed_ms(self, start, end):
        return end - start


def pytest_runtest_setup():
    PlayedClock.of_test = scatter()


bench.clock_for = lambda device: PlayedClock()
"""
"""A plugin that both revisions load: `bench.clock_for` has the same name in each."""


def main() -> None:
    """Compare with both revisions and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True, help="git revision of this repository")
    parser.add_argument("--budget", default="20m", help="time limit of each comparison")
    parser.add_argument("--spread", type=float, default=0.0, help="play times that scatter by so many per cent")
    parser.add_argument("--token-ms", type=float, default=40.0, help="played time of a token")
    parser.add_argument("arguments", nargs="*", help="pytest's, after --")
    given = parser.parse_args()
    played = PLAYED.format(spread=given.spread / 100, token_ms=given.token_ms) if given.spread else ""
    options = [*given.arguments, "-p", "played", "--llmperf-guards=none"] if played else given.arguments
    print("| revision | wall time | CPU time | blocks | processes | cells decided | load average |")
    print("|---|---|---|---|---|---|---|")
    cores = sorted(os.sched_getaffinity(0))
    halves = (cores[: len(cores) // 2], cores[len(cores) // 2 :])
    with tempfile.TemporaryDirectory() as name, ProcessPoolExecutor() as pool:
        places = {revision: Path(name) / revision for revision in ("HEAD", given.before)}
        pythons = [_environment(place, revision) for revision, place in places.items()]
        running = [
            pool.submit(_row, revision, python, _project(place, played), given.budget, options, on=half)
            for (revision, place), python, half in zip(places.items(), pythons, halves, strict=True)
        ]
        for row in as_completed(running):
            print(row.result(), flush=True)


def _environment(place: Path, revision: str) -> Path:
    """Install a revision over this environment; return its interpreter."""
    checkout = place / "checkout"
    _run("git", "-C", str(HERE), "worktree", "add", "--quiet", "--detach", str(checkout), revision)
    try:
        venv.create(place / "environment", with_pip=True)
        python = place / "environment" / "bin" / "python"
        sites = subprocess.check_output(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
        )
        Path(sites.strip(), "over.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
        _run(str(python), "-m", "pip", "install", "--quiet", "--no-deps", str(checkout))
    finally:
        _run("git", "-C", str(HERE), "worktree", "remove", "--force", str(checkout))
    return python


def _project(place: Path, played: str) -> Path:
    """Make a repository of one commit; with the played clock, if there is one."""
    project = place / "project"
    project.mkdir()
    if played:
        (project / "played.py").write_text(played, encoding="utf-8")
    author = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    for command in (
        ("init", "--quiet"),
        ("add", "."),
        (*author, "commit", "--quiet", "--allow-empty", "--message", "empty"),
    ):
        _run("git", "-C", str(project), *command)
    return project


def _row(  # noqa: PLR0913  # what runs, and where
    revision: str, python: Path, project: Path, budget: str, arguments: Sequence[str], *, on: Sequence[int]
) -> str:
    verdicts = project / "verdicts.json"
    suite = ("--pyargs", "pytest_llmperf.suite", "--device=cpu", *arguments)
    pinned = ("taskset", "--cpu-list", ",".join(map(str, on)))
    ab = ("-m", "pytest_llmperf", "ab", "HEAD", "HEAD", "--budget", budget, f"--verdicts={verdicts}")
    env = {**os.environ, "LLMPERF_CACHE": str(project / "cache")}
    env.pop("PYTHONPATH", None)  # both revisions would be imported from there
    start = time.monotonic()
    command = [*pinned, str(python), *ab, "--", *suite]
    done = subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, check=False)
    minutes = (time.monotonic() - start) / 60
    used = resource.getrusage(resource.RUSAGE_CHILDREN)  # of this revision alone: each has a process of its own
    if done.returncode not in (0, 1):
        sys.exit(f"{revision}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    cells = _timed_cells(verdicts)
    processes = len([*project.rglob("*-base.jsonl"), *project.rglob("*-head.jsonl"), *project.rglob("*-null.jsonl")])
    blocks = max(cell["blocks"] for cell in cells)
    decided = sum(cell["outcome"] in ("unchanged", "regressed", "improved") for cell in cells)
    load = psutil.getloadavg()[1]
    times = f"{minutes:.1f} min | {(used.ru_utime + used.ru_stime) / 60:.1f} min"
    return f"| {revision} | {times} | {blocks} | {processes} | {decided} of {len(cells)} | {load:.1f} |"


def _timed_cells(verdicts: Path) -> list[dict[str, Any]]:
    """The primary cells in a file of any revision."""
    tests = json.loads(verdicts.read_text(encoding="utf-8"))["tests"]
    return [cell for test in tests for cell in test["cells"] if cell["metric"] == PRIMARY.key]


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
