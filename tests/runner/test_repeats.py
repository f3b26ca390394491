"""A perf test's first outcome is final, whichever plugin repeats tests."""

from __future__ import annotations

import json
import re

import pytest
from perf_project import FAKE_CLOCK

QUIET_MACHINE = (1.0, 1.01, 0.99, 1.0, 1.005)

BAD_ONCE = """
import pathlib

import pytest

RUNS = pathlib.Path(__file__).with_name("runs")


@pytest.mark.parametrize("llm", ["fp32"], indirect=True)
def test_decode(llm, llmperf, monkeypatch):
    with RUNS.open("a") as file:
        file.write("x")
    first = RUNS.read_text() == "x"
    {bad}
    llmperf.generate(llm, batch_size=2)
"""
SLOW_ONCE = BAD_ONCE.format(bad='monkeypatch.setenv("STEP_MS", "9" if first else "1")')
RAISES_ONCE = BAD_ONCE.format(bad='assert not first, "bad luck"')

RERUNS = """
import pytest
from _pytest.runner import runtestprotocol


class Reruns:
    @pytest.hookimpl({order})
    def pytest_runtest_protocol(self, item, nextitem):
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for _ in range(3):
            reports = runtestprotocol(item, nextitem=nextitem, log=False)
            if all(report.passed for report in reports):
                break
        for report in reports:
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True


def {when}(config):
    config.pluginmanager.register(Reruns())
"""
RETRY = """
import pytest


@pytest.hookimpl(wrapper=True{order})
def pytest_runtest_makereport(item, call):
    report = yield
    if call.when == "call" and report.failed:
        item.ihook.pytest_runtest_logreport(report=report)
        pytest.CallInfo.from_call(lambda: item.ihook.pytest_runtest_teardown(item=item, nextitem=None), when="teardown")
        item._initrequest()
        pytest.CallInfo.from_call(lambda: item.ihook.pytest_runtest_setup(item=item), when="setup")
        again = pytest.CallInfo.from_call(lambda: item.ihook.pytest_runtest_call(item=item), when="call")
        report.outcome, report.longrepr = ("failed", "again") if again.excinfo else ("passed", None)
    return report
"""
LOOP = """
def pytest_runtestloop(session):
    for item in [*session.items, *session.items]:
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
    return True
"""
RUNS_ITEM = """
import pytest


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if call.when == "call" and report.failed:
        again = pytest.CallInfo.from_call(item.runtest, when="call")
        report.outcome, report.longrepr = ("failed", "again") if again.excinfo else ("passed", None)
    return report
"""
REPEATERS = {
    "protocol": RERUNS.format(order="", when="pytest_configure"),
    "first-protocol": RERUNS.format(order="tryfirst=True", when="pytest_configure"),
    "outer-report": RETRY.format(order=", tryfirst=True"),
    "inner-report": RETRY.format(order=", trylast=True"),
    "item": RUNS_ITEM,
    "loop": LOOP,
}


@pytest.fixture
def recorded(project):
    """A project whose baseline has a step of 1 ms."""
    project.write()
    project.record(*QUIET_MACHINE)
    return project


@pytest.mark.parametrize("repeater", REPEATERS.values(), ids=REPEATERS)
@pytest.mark.parametrize("test", [SLOW_ONCE, RAISES_ONCE], ids=["slow", "raises"])
def test_what_was_bad_the_first_time_is_bad(recorded, test, repeater):
    """The test runs once, fails once, and fails the run."""
    recorded.write(test, conftest=FAKE_CLOCK + repeater)
    result = recorded.run("--junitxml=out.xml", "--llmperf-verdicts=verdicts.json")
    assert result.ret == 1
    assert (recorded.path / "runs").read_text() == "x"
    verdicts = json.loads((recorded.path / "verdicts.json").read_text())
    assert [(one["failed"], bool(one["error"])) for one in verdicts["tests"]] == [(True, test == RAISES_ONCE)]
    junit = (recorded.path / "out.xml").read_text()
    assert len(re.findall('name="tpot_ms"', junit)) == (test == SLOW_ONCE)
    assert len(re.findall("<testcase", junit)) == 1
    if repeater != REPEATERS["inner-report"]:  # it reports before other plugins can change the outcome
        result.stdout.fnmatch_lines([f"*{'bad luck' if test == RAISES_ONCE else 'TPOT'}*", "FAILED *"])


LATE_RERUNS = (
    RERUNS.format(order="tryfirst=True", when="register")
    + """

@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session):
    register(session.config)
"""
)


@pytest.mark.parametrize("test", [SLOW_ONCE, RAISES_ONCE], ids=["slow", "raises"])
def test_a_plugin_that_comes_after_ours_still_runs_nothing_twice(recorded, test):
    """A plugin that replaces the protocol gets an error when it runs a phase again."""
    recorded.write(test, conftest=FAKE_CLOCK + LATE_RERUNS)
    assert recorded.run().ret == 1
    assert (recorded.path / "runs").read_text() == "x"


@pytest.mark.parametrize("repeater", REPEATERS.values(), ids=REPEATERS)
def test_a_run_that_is_recorded_holds_each_cell_once(project, repeater):
    """A test that failed at first is not recorded; the other tests are recorded once."""
    project.write(conftest=FAKE_CLOCK + repeater)
    assert project.run("--llmperf-update", "--llmperf-measure-only").ret == 0
    cells = [(cell["test"], cell["metric"]) for cell in json.loads(project.baseline().read_text())["cells"]]
    assert len(cells) == len(set(cells))
    before = project.baseline().read_text()
    project.write(RAISES_ONCE, conftest=FAKE_CLOCK + repeater)
    result = project.run("--llmperf-update", "--llmperf-measure-only")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["baseline NOT updated: a test failed*"])
    assert project.baseline().read_text() == before


REPEAT = """
import pytest


@pytest.fixture(name="{name}")
def step(request):
    return request.param


@pytest.hookimpl({order})
def pytest_generate_tests(metafunc):
    metafunc.fixturenames.append("{name}")
    metafunc.parametrize("{name}", range(3), indirect=True, ids=lambda number: f"{{number + 1}}-3")
"""
STEP = "__pytest_repeat_step_number"
PARAMETERS = """
import pytest


@pytest.mark.parametrize("lengths", ["1-16", "-1"])
@pytest.mark.parametrize("llm", ["fp32"], indirect=True)
def test_decode(llm, llmperf, lengths):
    llmperf.generate(llm, batch_size=2)


def test_call(cuda_timer):
    cuda_timer(sum, [1])
"""


@pytest.mark.parametrize("order", ["tryfirst=True", "trylast=True"])
def test_of_repetitions_by_parameter_the_first_is_the_test(project, order):
    """The test keeps the name that it has without repetition, so it is compared, and no test is missing."""
    project.write(PARAMETERS)
    project.record(1.0)
    known = {cell["test"] for cell in json.loads(project.baseline().read_text())["cells"]}
    project.write(PARAMETERS, conftest=FAKE_CLOCK + REPEAT.format(name=STEP, order=order))
    result = project.run("--llmperf-verdicts=verdicts.json")
    result.assert_outcomes(passed=3, deselected=6)
    result.stdout.no_fnmatch_line("missing: *")
    tests = json.loads((project.path / "verdicts.json").read_text())["tests"]
    assert {one["test"] for one in tests} == known
    assert "new" not in {cell["outcome"] for one in tests for cell in one["cells"] if cell["value"] is not None}


def test_repetitions_of_another_kind_are_refused(project):
    """One line names the parameter before anything is measured."""
    project.write(conftest=FAKE_CLOCK + REPEAT.format(name="__again", order="trylast=True"))
    result = project.run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: test_perf.py::test_decode*: a plugin repeats this test with *__again; *"])


def test_an_option_that_perf_tests_do_not_follow_is_told(project):
    """The header names the option as the user wrote it."""
    plugin = """
        import sys, types
        import pytest

        def pytest_addoption(parser):
            parser.addoption("--reruns", type=int)

        @pytest.hookimpl(tryfirst=True)
        def pytest_configure(config):
            config.pluginmanager.register(types.ModuleType("pytest_rerunfailures"), "rerunfailures")
    """
    project.write(conftest=plugin)
    line = "llmperf: each perf test runs once, in this process: ignored --reruns"
    assert line in project.run("--collect-only", "--reruns=2").outlines
    assert line not in project.run("--collect-only").outlines


def test_the_plain_way_is_pytests_own(project):
    """Other tests may still be repeated."""
    project.write(RAISES_ONCE.replace("llm, llmperf", "llm"), conftest=REPEATERS["protocol"])
    (project.path / "test_perf.py").write_text(
        "import pathlib\nRUNS = pathlib.Path(__file__).with_name('runs')\n\ndef test_plain():\n"
        "    RUNS.open('a').write('x')\n    assert RUNS.read_text() != 'x'\n"
    )
    project.pytester.runpytest("-q").assert_outcomes(passed=1)
    assert (project.path / "runs").read_text() == "xx"
