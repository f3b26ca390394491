"""Perf tests in pytest-benchmark's table and files, and its fixture with the device's clock."""

from __future__ import annotations

import json
import os
import sys

import pygal  # noqa: F401  # for good: it replaces what finds plugins, and an inner run would take that away again
import pytest
import torch
from perf_project import FAKE_CLOCK

pytest.importorskip("pytest_benchmark")

WORKLOADS = """
import pytest

@pytest.mark.parametrize("llm", ["fp32"], indirect=True)
def test_ways(llm, llmperf):
    generate, loop = (llmperf.generate(llm, execution=name) for name in ("generate", "loop"))
    llmperf.speedup(loop, over=generate)

def test_call(cuda_timer):
    cuda_timer(sum, [1, 2], repetitions=3)

def test_memory(peak_memory):
    pass
"""


def written(project, name="out.json"):
    return json.loads((project.path / name).read_text())


@pytest.mark.parametrize("workers", [(), ("-n1",)], ids=["plain", "xdist"])
def test_each_workload_that_has_times_is_a_benchmark(project, workers):
    """Times are in seconds; labels tell a test's workloads apart; a ratio has no rounds. xdist changes nothing."""
    project.write(WORKLOADS)
    result = project.run("--benchmark-json=out.json", "--benchmark-group-by=group", *workers, step_ms=2.0)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["* benchmark 'llmperf TPOT': 2 tests *", "*test_ways[[]fp32] execution=loop*2.0000*"])
    found = written(project)
    rows = {row["name"]: row for row in found["benchmarks"]}
    assert {name: row["group"] for name, row in rows.items()} == {
        "test_ways[fp32] execution=generate": "llmperf TPOT",
        "test_ways[fp32] execution=loop": "llmperf TPOT",
        "test_call": "llmperf call",
    }
    loop = rows["test_ways[fp32] execution=loop"]
    assert loop["stats"]["data"] == pytest.approx([0.002, 0.002])
    assert loop["stats"]["rounds"] == 2
    assert (loop["param"], loop["params"]["batch_size"], loop["options"]) == ("fp32", 1, {"timer": "fake"})
    assert loop["extra_info"]["operators_per_token"] > 0
    assert loop["fullname"].startswith(f"test_perf.py::test_ways[fp32]@{found['llmperf']['device_key']}/")
    assert found["llmperf"]["run"]["environment"]["torch"] == torch.__version__


def test_what_was_saved_is_compared_with_the_next_run(project):
    """pytest-benchmark compares and fails by its own rule; this run has no baseline of ours."""
    project.write()
    storage = ("--benchmark-storage=file://./saved", "--llmperf-measure-only")
    assert project.run("--benchmark-autosave", "--benchmark-save-data", *storage).ret == 0
    (saved,) = (project.path / "saved").rglob("*.json")
    result = project.run("--benchmark-compare", "--benchmark-compare-fail=mean:10%", *storage, step_ms=1.5)
    result.stdout.fnmatch_lines(["test_decode[[]fp32] (0001_*", "test_decode[[]fp32] (NOW)*"])
    assert "Performance has regressed" in result.stdout.str() + result.stderr.str()
    result.stdout.fnmatch_lines(["* benchmark 'llmperf TPOT': 2 tests *", "llmperf: 1 test measured, 0 errors*"])
    listed = project.pytester.run(sys.executable, "-m", "pytest_benchmark", "compare", str(saved))
    listed.stdout.fnmatch_lines(["*test_decode[[]fp32] *"])


def test_another_workload_is_another_benchmark(project):
    """More tokens are more work, which pytest-benchmark would report as slower."""
    project.write()
    storage = ("--benchmark-storage=file://./saved", "--llmperf-measure-only")
    project.run("--benchmark-autosave", *storage)
    result = project.run("--benchmark-compare", "--llmperf-output-tokens=3", *storage)
    result.stdout.no_fnmatch_line("*(NOW)*")


@pytest.mark.parametrize(
    ("asked", "heading", "first"),
    [
        (("--benchmark-warmup=off",), "Name (time in ms) *Median *IQR *Rounds", "test_ways*=generate *"),
        (("--benchmark-columns=min,max",), "Name (time in ms) *Min *Max*", "test_ways*=generate *"),
        (("--benchmark-sort=name",), "Name (time in ms) *Median *IQR *Rounds", "test_ways*=generate *"),
    ],
    ids=["other", "columns", "sort"],
)
def test_its_table_is_small_unless_asked_otherwise(project, asked, heading, first):
    """It is above our table, which has the verdicts; it is shown only with an option of pytest-benchmark."""
    project.write(WORKLOADS)
    found = project.run(*asked)
    found.stdout.fnmatch_lines([heading, "----*", first])
    start = next(at for at, line in enumerate(found.outlines) if line.startswith("Name (time"))
    assert all(len(line) <= 85 for line in found.outlines[start : start + 5])


@pytest.mark.parametrize("how", ["ini", "environment"])
def test_it_has_a_table_only_where_it_was_asked_for(project, how):
    """The option may be on the command line, in ``addopts`` or in ``PYTEST_ADDOPTS``."""
    project.write()
    project.run().stdout.no_fnmatch_line("*llmperf TPOT*")
    if how == "ini":
        project.pytester.makeini("[pytest]\naddopts = --benchmark-sort=name")
    else:
        project.monkeypatch.setenv("PYTEST_ADDOPTS", f"{os.environ['PYTEST_ADDOPTS']} --benchmark-sort=name")
    project.run().stdout.fnmatch_lines(["* benchmark 'llmperf TPOT': 1 tests *"])


def test_quiet_runs_have_no_table_and_save_all_the_same(project):
    """Our table is left out as well."""
    project.write()
    storage = ("--benchmark-storage=file://./saved", "--llmperf-measure-only", "-q")
    found = project.run("--benchmark-autosave", *storage)
    found.stdout.no_fnmatch_line("*llmperf TPOT*")
    assert list((project.path / "saved").rglob("*.json"))
    found = project.run("--benchmark-compare", "--benchmark-compare-fail=mean:10%", *storage, step_ms=1.5)
    assert "Performance has regressed" in found.stdout.str() + found.stderr.str()
    assert project.run("--benchmark-histogram=drawn", *storage).ret == 0
    assert list(project.path.glob("drawn*.svg"))


def test_a_histogram_is_drawn(project):
    """It needs pytest-benchmark's optional dependencies."""
    project.write()
    assert project.run("--benchmark-histogram=drawn").ret == 0
    assert list(project.path.glob("drawn*.svg"))


@pytest.mark.parametrize(
    "argument", ["-pno:benchmark", "--benchmark-disable", "--benchmark-skip"], ids=["absent", "disabled", "skipping"]
)
def test_where_nobody_wants_benchmarks_there_are_none(project, argument):
    """The perf tests still run."""
    project.write()
    result = project.run(argument)
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("* benchmark *: 1 tests*")


def test_benchmark_only_keeps_the_perf_tests(project):
    """They count as benchmarks, although they do not use pytest-benchmark's fixture."""
    project.write()
    result = project.run("--benchmark-only")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["* benchmark 'llmperf TPOT': 1 tests *"])


LIKE_CODSPEED = """
import pytest


class Codspeed:
    is_codspeed_enabled = True

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config, items):
        if self.is_codspeed_enabled:
            config.hook.pytest_deselected(items=items[:])
            items.clear()


def pytest_addoption(parser):
    for name in ("disable", "enable", "skip", "only"):
        parser.addoption(f"--benchmark-{name}", action="store_true")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    config.pluginmanager.register(Codspeed(), "codspeed_plugin")
"""


def test_options_of_its_names_are_not_its_presence(project):
    """Another plugin has options of the same names, and deselects every test without its fixtures."""
    project.write(conftest=FAKE_CLOCK + LIKE_CODSPEED)
    result = project.run("-p", "no:benchmark")
    assert result.ret == 0, result.outlines
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("* benchmark 'llmperf TPOT'*")


def test_where_another_plugin_blocked_it_perf_tests_run_without_it(project):
    """Its module is imported, but its session, which holds the rows, does not exist."""
    blocks = "import pytest\n\n@pytest.hookimpl(tryfirst=True)\n"
    blocks += "def pytest_configure(config): config.pluginmanager.set_blocked('pytest-benchmark')\n"
    project.write(conftest=FAKE_CLOCK + blocks)
    assert project.run().ret == 0


def test_what_failed_has_no_row_and_what_was_injected_is_marked(project):
    """The same holds for our own table."""
    project.write(
        "import pytest\n\n"
        "@pytest.mark.parametrize('llm', ['fp32'], indirect=True)\n"
        "@pytest.mark.parametrize('ends', ['well', 'badly\\x1b[31m'])\n"
        "def test_one(llm, llmperf, ends):\n    llmperf.generate(llm)\n    assert ends == 'well'\n"
    )
    project.run("--benchmark-json=out.json", "--llmperf-inject=sleep:1ms")
    assert [(row["name"], row["group"]) for row in written(project)["benchmarks"]] == [
        ("test_one[well-fp32]", "llmperf TPOT INJECTED sleep:1ms")
    ]


def test_a_benchmark_uses_the_device_clock_where_its_test_asks_for_it(pytester, monkeypatch):
    """It works without ``--llmperf``; other benchmarks keep their timer."""
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:hypothesispytest")
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    pytester.makepyfile("""
        import pytest
        import pytest_llmperf

        @pytest.mark.benchmark(timer=pytest_llmperf.device_timer, max_time=0.01)
        def test_asks(benchmark):
            assert benchmark(sum, [1, 2]) == 3

        @pytest.mark.benchmark(max_time=0.01)
        def test_does_not(benchmark):
            benchmark(sum, [1, 2])
    """)
    result = pytester.runpytest_inprocess("--benchmark-json=out.json")
    result.assert_outcomes(passed=2)
    rows = json.loads((pytester.path / "out.json").read_text())["benchmarks"]
    assert ["device_timer" in row["options"]["timer"] for row in rows] == [True, False]
    assert all(row["stats"]["min"] > 0 for row in rows)


def test_the_device_timer_is_a_timer_that_the_command_line_can_name(pytester):
    """``--benchmark-timer`` imports it by its dotted name, without importing torch."""
    statement = "import sys, pytest_llmperf; pytest_llmperf.device_timer; assert 'torch' not in sys.modules"
    assert pytester.run(sys.executable, "-c", statement).ret == 0
    pytester.makepyfile("def test_speed(benchmark): benchmark(sum, [1])")
    result = pytester.runpytest_inprocess("--benchmark-timer=pytest_llmperf.device_timer", "--benchmark-max-time=0.01")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["benchmark: *timer=*device_timer*"])
