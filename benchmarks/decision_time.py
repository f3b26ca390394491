"""How long ``llmperf ab`` takes to decide an A/A comparison, beside an earlier revision of this package.

Both revisions are installed into environments of their own over this one. One after the other compares an empty commit
with itself: the ready-made suite, with the options after ``--``. Prints the time, the blocks, and how many primary
cells were decided::

    python benchmarks/decision_time.py --before REVISION [--budget 20m] -- --llmperf-model=synthetic:tiny
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from pytest_llmperf.metrics import PRIMARY

HERE = Path(__file__).parents[1]


def main() -> None:
    """Compare with both revisions and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True, help="git revision of this repository")
    parser.add_argument("--budget", default="20m", help="time limit of each comparison")
    parser.add_argument("arguments", nargs="*", help="pytest's, after --")
    given = parser.parse_args()
    print(
        "| revision | wall time | blocks | processes | timed cells decided | load average |\n|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as name:
        for revision in ("HEAD", given.before):
            place = Path(name) / revision
            python = _environment(place, revision)
            print(_row(revision, python, place / "project", given.budget, given.arguments), flush=True)


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


def _row(revision: str, python: Path, project: Path, budget: str, arguments: Sequence[str]) -> str:
    project.mkdir()
    for command in (
        ["init"],
        ["-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "--allow-empty", "-m", "empty"],
    ):
        _run("git", "-C", str(project), *command, "--quiet")
    verdicts = project / "verdicts.json"
    suite = ("--pyargs", "pytest_llmperf.suite", "--device=cpu", *arguments)
    command = [str(python), "-m", "pytest_llmperf", "ab", "HEAD", "HEAD", "--budget", budget, f"--verdicts={verdicts}"]
    env = {**os.environ, "LLMPERF_CACHE": str(project / "cache")}
    start = time.monotonic()
    done = subprocess.run([*command, "--", *suite], cwd=project, env=env, capture_output=True, text=True, check=False)
    minutes = (time.monotonic() - start) / 60
    if done.returncode not in (0, 1):
        sys.exit(f"{revision}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    cells = _timed_cells(verdicts)
    processes = len([*project.rglob("*-base.jsonl"), *project.rglob("*-head.jsonl"), *project.rglob("*-null.jsonl")])
    blocks = max(cell["blocks"] for cell in cells)
    decided = sum(cell["outcome"] in ("unchanged", "regressed", "improved") for cell in cells)
    load = psutil.getloadavg()[1]
    return f"| {revision} | {minutes:.1f} min | {blocks} | {processes} | {decided} of {len(cells)} | {load:.1f} |"


def _timed_cells(verdicts: Path) -> list[dict[str, Any]]:
    """The primary cells in a file of any revision."""
    tests = json.loads(verdicts.read_text(encoding="utf-8"))["tests"]
    return [cell for test in tests for cell in test["cells"] if cell["metric"] == PRIMARY.key]


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
