"""The tutorial works: its files are written and its commands run, in order, in an empty folder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from user_shell import run_script, user_environment

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial.md"
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
    """Each shell block ends with the announced exit code, or 0."""
    # Other tests run beside this one: guards would see them, and so would every time.
    few = "--llmperf-requests=1 --llmperf-warmup=0"  # what is counted needs no more
    environment = user_environment(PYTEST_ADDOPTS=f"--llmperf-guards=none --llmperf-gate=operators_per_token {few}")
    commands = 0
    for block in blocks(TUTORIAL.read_text(encoding="utf-8")):
        if block.title:
            (tmp_path / block.title).parent.mkdir(exist_ok=True)
            (tmp_path / block.title).write_text(block.text, encoding="utf-8")
        elif block.kind == "sh" and not block.note.startswith("not run"):
            commands += 1
            expected = int(block.note.removeprefix("exit code ") or 0)
            ended = run_script(block.text, tmp_path, environment)
            assert ended.returncode == expected, f"{block.text}\n{ended.stdout}\n{ended.stderr}"
    assert commands == 8
