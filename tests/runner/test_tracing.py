"""Traced runs are not compared with untraced ones."""

from __future__ import annotations

import sys
import threading
import tracemalloc

import pytest
from perf_project import DECODE_TEST, FAKE_CLOCK

from pytest_llmperf.system.tracing import tracing

TRACED = """
import sys


def watch(frame, event, argument):
    pass


sys.setprofile(watch)


def pytest_unconfigure():
    sys.setprofile(None)
"""
IN_THE_TEST = DECODE_TEST.replace(
    "    llmperf.generate", "    import sys; sys.setprofile(print_nothing)\n    llmperf.generate"
)
IN_THE_TEST += """

def print_nothing(frame, event, argument):
    pass


@pytest.fixture(autouse=True)
def stop():
    yield
    import sys
    sys.setprofile(None)
"""


def hook(*_):
    """A tracing function."""


def test_each_way_to_trace_is_told_by_the_name_of_who_traces(monkeypatch):
    """A tracing function is named by its module; another object by the module of its type."""
    before = tracing()
    seen = []
    monkeypatch.setattr(threading, "_trace_hook", hook)
    seen.append(tracing())
    monkeypatch.undo()
    previous = sys.getprofile()
    sys.setprofile(hook)
    try:
        seen.append(tracing())
    finally:
        sys.setprofile(previous)
    assert all(__name__ in found.split() for found in seen)
    if not tracemalloc.is_tracing():
        tracemalloc.start()
        try:
            assert "tracemalloc" in tracing().split()
        finally:
            tracemalloc.stop()
    assert tracing() == before


@pytest.mark.skipif(sys.version_info < (3, 12), reason="sys.monitoring came with 3.12")
def test_a_tool_of_pythons_monitoring_is_told_by_its_name():
    number = sys.monitoring.OPTIMIZER_ID
    sys.monitoring.use_tool_id(number, "a tool")
    try:
        assert "a tool" in tracing()
    finally:
        sys.monitoring.free_tool_id(number)


@pytest.fixture
def recorded(project):
    """A project whose baseline has a step of 1 ms."""
    project.write()
    project.record(1.0, 1.01, 0.99)
    return project


def test_a_traced_run_is_not_comparable_with_others(recorded):
    """This holds however slow it is; traced runs are compared with each other. Tracing changes no counted work."""
    recorded.write(conftest=FAKE_CLOCK + TRACED)
    result = recorded.run(step_ms=9.0)
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        ["not comparable: *environment tracing: * -> *conftest*", "times and peaks: 0 of 3 cells decided: *"]
    )
    assert recorded.run("--llmperf-strict", step_ms=9.0).ret == 1


@pytest.mark.parametrize("guards", ["none", "placement"])
def test_tracing_that_begins_in_a_test_makes_its_times_invalid(recorded, guards):
    """No guard is involved: the recorded environment would be wrong. Counted metrics are still compared."""
    recorded.write(IN_THE_TEST)
    result = recorded.run(f"--llmperf-guards={guards}", step_ms=9.0)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["invalid: *tracing changed since the run began: * -> *test_perf*"])
    update = recorded.run("--llmperf-update", f"--llmperf-guards={guards}")
    update.stdout.fnmatch_lines(["baseline NOT updated: the run was disturbed*tracing changed*"])
