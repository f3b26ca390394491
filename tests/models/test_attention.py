"""Attention and prompts as part of a workload, and the live progress line, from the command line."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from io import StringIO
from types import SimpleNamespace

import pytest
from perf_project import QUICK

from pytest_llmperf.engines.executions.request import RequestTimes
from pytest_llmperf.runner.live_line import LiveLine

PROMPTS = """
import pytest

@pytest.mark.parametrize("llm", ["fp32"], indirect=True)
def test_own(llm, llmperf):
    llmperf.generate(llm, prompt="Hello there")

@pytest.mark.parametrize("llm", ["fp32"], indirect=True)
def test_length(llm, llmperf):
    llmperf.generate(llm, input_tokens=5)

@pytest.mark.parametrize("llm", ["fp32"], indirect=True)
def test_run(llm, llmperf):
    llmperf.generate(llm)

@pytest.mark.parametrize("llm", ["fp32"], indirect=True)
def test_both(llm, llmperf):
    llmperf.generate(llm, prompt="Hello there", input_tokens=5)
"""


def written(project):
    """The recorded workloads, by test."""
    files = [json.loads(path.read_text()) for path in (project.path / "out").glob("*.json")]
    return {one["test"].rpartition("::")[2]: one["results"][0] for one in files}


def test_the_suite_measures_each_attention(project):
    """The resolved attention is part of the workload; the requested one is recorded in the observation."""
    result = project.run(
        "--pyargs", "pytest_llmperf.suite.test_quantization", "--llmperf-attention=eager,sdpa",
        "--llmperf-quantization=fp32", "--llmperf-batch-sizes=1", "--llmperf-json=out", "--llmperf-prompt=chat",
    )  # fmt: skip
    result.assert_outcomes(passed=2)
    found = written(project)
    assert set(found) == {f"test_generate[fp32-{name}-b1-generate]" for name in ("eager", "sdpa")}
    for test, one in found.items():
        assert f"-{one['workload']['attention']}-" in test
        assert one["observation"]["attention_requested"] == one["workload"]["attention"]
    assert len({one["workload"]["prompt_sha256"] for one in found.values()}) == 1


def test_an_attention_that_cannot_run_here_is_skipped_with_its_reason(project):
    """No other attention is measured instead."""
    project.write()
    result = project.run("--llmperf-attention=flash_attention_2", "-rs")
    assert result.ret == 0
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*Nothing was verified.", "SKIPPED*could not be loaded as 'fp32'*Flash*"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--llmperf-attention=quick"], "*attention 'quick' is unknown: expected one of eager, sdpa, *"),
        (["--llmperf-attention=org/kernel"], "*attention 'org/kernel' is code from the Hugging Face hub*"),
        (["--llmperf-attention=eager,sdpa"], "*ambiguous for a test that parametrizes llm without an attention*"),
        (["--llmperf-prompt=hello"], "*prompt 'hello': expected random, text:WORDS, *"),
    ],
)
def test_what_is_known_beforehand_ends_collection(project, arguments, expected):
    """The exit code is 4."""
    project.write()
    result = project.run(*arguments)
    assert result.ret == 4
    result.stderr.fnmatch_lines([expected])


def test_a_prompt_of_the_test_goes_before_that_of_the_run(project):
    """A length in the test means random ids; a text and a length contradict each other."""
    project.write(PROMPTS)
    result = project.run("--llmperf-prompt=text:one two three", "--llmperf-json=out")
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(["*input_tokens=5 with a text prompt*"])
    found = {test: one["workload"] for test, one in written(project).items()}
    assert found["test_length[fp32]"]["input_tokens"] == 5
    assert len({one["prompt_sha256"] for one in found.values()}) == 3
    assert "Hello" not in json.dumps(found)


class FakeReporter:
    """A terminal of 80 columns, 30 of which are used."""

    verbosity, isatty, hasmarkup = 1, True, True

    def __init__(self, column=30):
        self._tw = SimpleNamespace(fullwidth=80, width_of_current_line=column, _file=StringIO(), flush=lambda: None)

    @property
    def written(self):
        return re.findall(r"\x1b7.*?\x1b8", self._tw._file.getvalue(), re.DOTALL)


def test_the_line_tells_tokens_and_the_running_median(capsys):
    """It is erased when the test's own code continues."""
    reporter = FakeReporter()
    line = LiveLine(reporter, capsys.disabled)
    line.enter("timed requests")
    line.request(RequestTimes(ttft_ms=5.0, gaps_ms=[2.0, 4.0], wall_ms=11.0))
    line.request(RequestTimes(ttft_ms=5.0, gaps_ms=[], wall_ms=5.0))
    line.enter("prefill")
    line.enter("test body")
    line.enter("setup")
    assert reporter.written == [
        "\x1b7" + "timed requests" + "\x1b[K\x1b8",
        "\x1b7" + "3 tokens per sequence, TPOT 3.00 ms" + "\x1b[K\x1b8",
        "\x1b7" + "4 tokens per sequence, TPOT 3.00 ms" + "\x1b[K\x1b8",
        "\x1b7" + "prefill" + "\x1b[K\x1b8",
        "\x1b7\x1b[K\x1b8",
    ]


def test_a_long_name_leaves_no_room(capsys):
    """The line never wraps."""
    reporter = FakeReporter(column=70)
    LiveLine(reporter, capsys.disabled).request(RequestTimes(ttft_ms=5.0, gaps_ms=[2.0], wall_ms=11.0))
    assert reporter.written == []


@pytest.mark.parametrize("what", ["verbosity", "isatty", "hasmarkup"])
def test_it_is_for_people_who_look(what, monkeypatch):
    """It is shown on a terminal, unless pytest is quiet."""
    assert LiveLine.fits(FakeReporter())
    monkeypatch.setattr(FakeReporter, what, -1 if what == "verbosity" else 0)
    assert not LiveLine.fits(FakeReporter())
    assert not LiveLine.fits(None)


def test_on_a_real_terminal(project):
    """It is shown at -v, although the test's output is captured."""
    project.write(conftest="")
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "pytest", *QUICK, "-v"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "160", "PY_COLORS": "1"}
    with subprocess.Popen(command, stdout=follower, cwd=project.path, env=environment) as process:
        os.close(follower)
        seen = _read_all(leader)
    assert process.returncode == 0, seen
    assert "\x1b7" + "4 tokens per sequence, TPOT " in seen
    assert "PASSED" in seen.rpartition("\x1b8")[2]


def _read_all(leader):
    """Read until the other end is closed, which Linux reports by an error."""
    parts = []
    try:
        while part := os.read(leader, 65536):
            parts.append(part)
    except OSError:
        pass
    os.close(leader)
    return b"".join(parts).decode()
