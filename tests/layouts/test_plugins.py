"""Other plugins in the user's environment: none of them hides a slowdown, and our plugin disturbs none of them."""

from __future__ import annotations

import json
import re
import shutil
from xml.etree import ElementTree as ET

import pytest
from layout import Layout, assert_red

# Pinned to versions with which these tests pass.
REPEATING = {
    "pytest-rerunfailures==16.7": ["--reruns=2"],
    "flaky==3.8.1": ["--force-flaky", "--max-runs=3"],
    "pytest-repeat==0.9.4": ["--count=2"],
    "pytest-forked==1.7.5": ["--forked"],
    "pytest-retry==1.7.0": ["--retries=2"],
}
# Slower at its first run only.
PERF_TEST_ONCE = """
import pathlib
import pytest

@pytest.mark.parametrize("llm", ["fp32"], indirect=True)
def test_decode(llm, llmperf):
    flag = pathlib.Path(__file__).with_name("flag")
    times = 3 if flag.exists() else 1
    flag.unlink(missing_ok=True)
    head = llm.model.get_output_embeddings()
    forward = head.forward
    head.forward = lambda x: forward(x + 0 + 0 if times == 3 else x)
    llmperf.generate(llm, batch_size=1, input_tokens=8, output_tokens=4)
    head.forward = forward
"""
LATE_OPTION = """
def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", choices=["cpu", "gpu"])
"""


@pytest.fixture(scope="session")
def recorded_project(tmp_path_factory, cache):
    """A project with a baseline; tests copy it."""
    layout = Layout(tmp_path_factory.mktemp("recorded"), cache)
    layout.make_environment()
    layout.plain_project()
    layout.write({"tests/test_perf.py": PERF_TEST_ONCE})
    layout.begin()
    assert layout.llmperf("record", "--runs=1", "tests").code == 0
    layout.commit("baseline")
    return layout.root


@pytest.fixture
def recorded(recorded_project, layout):
    layout.root.rmdir()
    shutil.copytree(recorded_project, layout.root)
    layout.make_environment()
    return layout


@pytest.fixture
def beside(recorded):
    """Return a function that installs another plugin into the project's environment."""

    def install(*plugins):
        recorded.install(*plugins, dependencies=True)
        return recorded

    return install


@pytest.mark.parametrize("plugin", REPEATING)
def test_a_test_that_is_slower_once_stays_red(beside, plugin):
    """Its first outcome is final, and an update stores one value of each metric."""
    layout = beside(plugin)
    layout.write({"tests/flag": ""})
    options = [*REPEATING[plugin], "--llmperf-confirm=0", "--junitxml=junit.xml", "-q"]
    result = layout.pytest("--llmperf", *options)
    assert_red(result)
    (case,) = ET.parse(layout.root / "junit.xml").getroot().iter("testcase")  # noqa: S314  # our own
    names = [one.get("name") for one in case.iter("property")]
    assert "operators_per_token" in names
    assert len(names) == len(set(names))
    result = layout.llmperf("record", "--runs=1", *REPEATING[plugin], "tests")
    assert "Traceback" not in result.text
    assert result.code == 0, result.text
    (baseline,) = layout.root.glob("baselines/[!.]*.json")
    stored = json.loads(baseline.read_text())
    assert {seen["test"] for seen in stored["observations"]} == {"tests/test_perf.py::test_decode[fp32]"}
    assert len(stored["runs"]) == 2


def test_the_gate_is_red_where_a_screen_would_be_run_again(beside):
    """Its last line agrees with its exit code."""
    layout = beside("pytest-rerunfailures==16.7")
    layout.git("switch", "-qc", "change")
    layout.write({"tests/flag": ""})
    result = layout.gate("main", tests=["--reruns=2"])
    assert_red(result)
    assert re.search("^llmperf gate: FAILED", result.last_line)


def test_codspeed_in_the_place_of_pytest_benchmark(beside):
    """It has options of the same names."""
    result = beside("pytest-codspeed==5.0.4").pytest("--llmperf", "-p", "no:benchmark", "--codspeed", "-q")
    assert result.code == 0, result.text
    assert "1 of 1 gating cells decided: 1 unchanged" in result.text


def test_coverage_that_the_baseline_had_not(beside):
    """A traced run is not compared with untraced ones, and the reason is shown."""
    result = beside("pytest-cov==7.1.0").pytest(
        "--llmperf", "--llmperf-gate=tpot", "--cov=tests", "--cov-report=", "-q"
    )
    assert "1 not comparable" in result.text, result.text
    assert "tracing: none -> coverage" in result.text


@pytest.mark.parametrize("arguments", [[], ["--llmperf", "--llmperf-device=cpu"]], ids=["plain", "perf"])
def test_a_conftest_that_has_an_option_of_our_name(recorded, arguments):
    """The conftest is loaded after our options were declared, and keeps its own option."""
    recorded.write({"tests/gpu/conftest.py": LATE_OPTION, "tests/gpu/test_a.py": "def test_a(pytestconfig):\n"
                    "    assert pytestconfig.getoption('--device') == 'cpu'\n"})  # fmt: skip
    result = recorded.pytest(*arguments, "-q")
    assert result.code == 0, result.text
    assert ("1 unchanged" if arguments else "1 passed") in result.text


def test_tests_that_a_run_did_not_look_for_are_not_missing(recorded):
    """Running one failed test alone misses no other. When the last test is gone, it is missing."""
    recorded.write({"tests/test_else.py": PERF_TEST_ONCE.replace("test_decode", "test_else")})
    assert recorded.llmperf("record", "--runs=1", "tests").code == 0
    assert recorded.pytest("--llmperf", "-q", "-k", "else", "--llmperf-inject=operators_per_token:+5%").code == 1
    result = recorded.pytest("--llmperf", "-q", "--llmperf-strict", "--lf")
    assert (result.code, "missing" in result.text) == (0, False), result.text
    for name in ("test_else", "test_perf"):
        recorded.write({f"tests/{name}.py": "def test_other(): pass\n"})
    result = recorded.pytest("--llmperf", "-q", "--llmperf-strict")
    assert result.code == 1
    assert re.search("missing.*test_decode", result.text), result.text


BROKEN = {
    "release": "import pytest_llmperf.runner.context as workplace\n\n\nclass Broken(workplace.Bench):\n"
    "    def release(self):\n        raise RuntimeError('device lost')\n\n\nworkplace.Bench = Broken\n",
    "report": "def pytest_runtest_logreport(report):\n    raise RuntimeError('device lost')\n",
    "finish": "import pytest\n\n\n@pytest.hookimpl(tryfirst=True)\ndef pytest_sessionfinish():\n"
    "    raise RuntimeError('device lost')\n",
    "disk": "import errno\nimport pytest_llmperf.storage.journal as journal\n\n\ndef full(*_):\n"
    "    raise OSError(errno.ENOSPC, 'No space left on device')\n\n\njournal.Journal._write = full\n",
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_breaks_at_the_end_hides_nothing(recorded, what):
    """The summary is printed, the verdict file is written, and the exit code is not 0."""
    recorded.write({"tests/conftest.py": BROKEN[what]})
    result = recorded.pytest("--llmperf", "-q", f"--llmperf-verdicts={recorded.verdicts_file}")
    assert result.code != 0
    assert "1 unchanged" in result.text, result.text
    assert "device lost" in result.text or "No space left on device" in result.text
    assert recorded.verdicts.failed or what == "finish", "it is written before another plugin's hook"
    if what != "disk":
        assert list(recorded.root.glob(".llmperf/runs/*.jsonl"))
