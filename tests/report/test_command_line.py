"""Errors of the ``llmperf`` command: wrong arguments, and terminals that cannot show a text."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from sample_verdicts import SAMPLE

from pytest_llmperf.cli import main
from pytest_llmperf.verdict.verdict_file import write_verdicts


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["bogus"], "llmperf: error: argument COMMAND: invalid choice: 'bogus'"),
        (
            ["report", "--format", "bogus", "v.json"],
            "llmperf report: error: argument --format: invalid choice",
        ),
        (["accept"], "llmperf accept: error: the following arguments are required: TEST, --reason"),
        ([], "llmperf: error: the following arguments are required: COMMAND"),
    ],
)
def test_a_wrong_command_line_ends_as_pytests_does(capsys, arguments, line):
    """The exit code is 4, since 2 means an interrupt."""
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 4
    assert capsys.readouterr().err.splitlines()[-1].startswith(line)


def test_what_the_terminal_cannot_show_is_escaped(tmp_path):
    """A traceback would exit with 1, the code of a regression."""
    write_verdicts(tmp_path / "verdicts.json", SAMPLE)
    command = [sys.executable, "-m", "pytest_llmperf", "report", "verdicts.json"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert ended.returncode == 0
    assert ended.stdout.isascii()
