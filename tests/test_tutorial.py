"""The tutorial does what it says: its files are written and its commands run, in order, in an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

TUTORIAL = Path(__file__).parent.parent / "docs" / "tutorial.md"
BLOCK = re.compile(
    r"(?:<!-- (?P<note>.*?) -->\n)?```(?P<kind>\w+)(?: title=\"(?P<title>.*?)\")?\n(?P<text>.*?)```", re.DOTALL
)


class Block(NamedTuple):
    note: str
    kind: str
    title: str
    text: str


def blocks(text: str) -> Iterator[Block]:
    for found in BLOCK.finditer(text):
        yield Block(found["note"] or "", found["kind"], found["title"] or "", found["text"])


def test_the_tutorial_does_what_it_says(model_cache, tmp_path):
    """Each shell block ends with the exit code that it announces, 0 where it announces none."""
    commands = 0
    for block in blocks(TUTORIAL.read_text(encoding="utf-8")):
        if block.title:
            (tmp_path / block.title).parent.mkdir(exist_ok=True)
            (tmp_path / block.title).write_text(block.text, encoding="utf-8")
        elif block.kind == "sh" and not block.note.startswith("not run"):
            commands += 1
            expected = int(block.note.removeprefix("exit code ") or 0)
            ended = run(block.text, tmp_path)
            assert ended.returncode == expected, f"{block.text}\n{ended.stdout}\n{ended.stderr}"
    assert commands == 8


def run(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """By the shell, up to the first command that fails, with this environment's programs before others."""
    names = ("CI", "BUILD_NUMBER", "GITHUB_RUN_ID", "CI_JOB_ID", "LLMPERF_SESSION_ID")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    # Other tests run beside this one: guards would see them, and so would every time.
    environment["PYTEST_ADDOPTS"] = "--llmperf-guards=none --llmperf-gate=operators_per_token"
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    for role in ("AUTHOR", "COMMITTER"):
        environment |= {f"GIT_{role}_NAME": "A", f"GIT_{role}_EMAIL": "a@example.com"}
    command = ["bash", "-euo", "pipefail", "-c", script]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
