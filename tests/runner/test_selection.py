"""Selection of tests, and the cost of a run without perf tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from perf_project import FAKE_CLOCK, QUICK

from pytest_llmperf.runner.options import SETTINGS, add_options

ROOT = Path(__file__).parents[2]
HEAVY = (
    "torch",
    "transformers",
    "pandas",
    "scipy",
    "rich",
    "pydantic",
    "numpy",
    "psutil",
    "pytest_llmperf.runner.session",
)

ALL_KINDS = """
import pytest

def test_plain(): pass

@pytest.mark.llmperf
def test_marked(): pass

@pytest.mark.parametrize("llm", ["fp32"], indirect=True)
def test_model(llm): pass

def test_memory(peak_memory): pass
"""

STARTS_A_PERF_RUN = """
import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    config.option.llmperf = True
"""
SEES_FAILURES = """
import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    print("SEEN", report.when, report.outcome)
    return report
"""


def test_without_the_flag_perf_tests_are_deselected_and_nothing_heavy_is_imported(pytester, monkeypatch):
    """The installed plugin costs other projects nothing."""
    monkeypatch.setenv("PLAIN_PYTHON", "1")  # a fork has imported torch
    pytester.makepyfile(ALL_KINDS)
    pytester.makeconftest(f"""
        import sys
        def pytest_unconfigure():
            print("HEAVY", [name for name in {HEAVY!r} if name in sys.modules])
    """)
    result = pytester.runpytest_subprocess("-p", "no:benchmark", "-s")
    result.assert_outcomes(passed=1, deselected=3)
    result.stdout.fnmatch_lines(["HEAVY []"])


def test_with_the_flag_only_perf_tests_run(project):
    """Tests with the marker or a fixture of the plugin are perf tests."""
    project.write(ALL_KINDS)
    project.run().assert_outcomes(passed=3, deselected=1)


def test_measuring_this_repository_needs_nothing_that_only_its_unit_tests_need(tmp_path):
    """`nox -s perf` does not install hypothesis, so an import of it would stop the main job."""
    broken = tmp_path / "hypothesis" / "__init__.py"
    broken.parent.mkdir()
    broken.write_text("raise ImportError('not installed')", encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:hypothesispytest",
        "--llmperf",
        "--device=cpu",
        "--collect-only",
        "-q",
    ]
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    collected = [line for line in result.stdout.splitlines() if "::" in line]
    assert result.returncode == 0
    assert len(collected) == 12
    assert all(line.startswith("tests/perf/") for line in collected)


def test_a_plain_run_imports_only_what_declares_the_options(pytester, monkeypatch):
    """Each module of the plugin costs time in each run of each project; ``--help`` shows all options nevertheless."""
    monkeypatch.setenv("PLAIN_PYTHON", "1")  # a fork has imported more
    pytester.makeconftest("""
        import sys
        def pytest_unconfigure():
            print("OURS", sorted(name for name in sys.modules if name.partition(".")[0] == "pytest_llmperf"))
    """)
    ours = ["pytest_llmperf", *(f"pytest_llmperf.{name}" for name in ("plugin", "runner", "runner.options"))]
    pytester.makepyfile(test_other="def test_other(): pass")
    result = pytester.runpytest_subprocess("-p", "no:benchmark", "-s", "test_other.py")
    result.assert_outcomes(passed=1)
    assert f"OURS {ours}" in result.stdout.lines
    shown = pytester.runpytest_subprocess("--help").stdout.str()
    assert [option.flag for option in SETTINGS if option.flag not in shown] == []


def test_a_conftest_is_loaded_before_anything_heavy(pytester, monkeypatch):
    """It may set variables that libraries read when they are imported, also in a perf run."""
    monkeypatch.setenv("PLAIN_PYTHON", "1")
    pytester.makeconftest(f"import sys; print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])")
    pytester.makepyfile(test_other="def test_other(): pass")
    result = pytester.runpytest_subprocess("--llmperf", "-p", "no:hypothesispytest", "-s")
    assert "HEAVY []" in result.stdout.lines


def test_a_conftest_may_start_a_perf_run(project):
    """It sets the option, which the command line does not have."""
    project.write(conftest=FAKE_CLOCK + STARTS_A_PERF_RUN)
    arguments = [word for word in QUICK if word not in ("--llmperf", "--device=cpu")]
    result = project.pytester.runpytest_inprocess(*arguments, "--llmperf-device=cpu")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["llmperf: device cpu, baselines in *", "llmperf: 1 test, *"])


def test_a_conftest_hook_sees_the_verdict(project):
    """A project's wrapper of the report, such as one that keeps traces of failures, runs after ours."""
    project.write()
    project.record(1.0, 1.01, 0.99, 1.0, 1.005)
    project.write(conftest=FAKE_CLOCK + SEES_FAILURES)
    result = project.run("-s", step_ms=1.5)
    assert result.ret == 1
    assert "SEEN call failed" in result.outlines


def test_every_option_names_its_destination(monkeypatch):
    """Without one, pytest looks at every option of every plugin for each new one."""
    given = []
    monkeypatch.setattr(pytest.OptionGroup, "addoption", lambda _group, *_flags, **more: given.append(more.get("dest")))
    add_options(pytest.Parser(_ispytest=True))
    assert {option.ini for option in SETTINGS} < {*given}
    assert None not in given
    assert len(given) == len({*given})


def test_importing_the_plugin_imports_nothing_heavy(pytester):
    """Every pytest run imports this module."""
    code = f"import sys, pytest_llmperf.plugin; print([n for n in {HEAVY!r} if n in sys.modules])"
    result = pytester.run(sys.executable, "-c", code)
    result.stdout.fnmatch_lines(["[[]]"])


def test_help_lists_the_options_under_one_heading(pytester):
    """Options and ini settings have descriptions."""
    result = pytester.runpytest("--help")
    result.stdout.fnmatch_lines(["LLM inference performance regression:", "*--llmperf *", "*--device=DEVICE*"])
    result.stdout.fnmatch_lines(["*llmperf_limits (linelist):*"])


def test_the_marker_is_listed(pytester):
    """``pytest --markers`` shows the marker's keywords."""
    pytester.runpytest("--markers").stdout.fnmatch_lines(["@pytest.mark.llmperf(*gate=None*"])


def test_collecting_only_measures_nothing(project):
    """``--collect-only`` opens no device and loads no model."""
    project.write()
    result = project.run("--collect-only", "-q")
    result.stdout.fnmatch_lines(["test_perf.py::test_decode[[]fp32[]]"])


def test_a_parametrized_spec_has_a_stable_id(project):
    """Baselines depend on node ids."""
    project.write("""
        import pytest
        from pytest_llmperf import ModelSpec

        @pytest.mark.parametrize("llm", [ModelSpec("synthetic:tiny", "nf4", attention="eager")], indirect=True)
        def test_decode(llm, llmperf): pass

        def test_default(llm): pass
    """)
    result = project.run("--collect-only", "-q", "--llmperf-quantization=bf16,int8")
    result.stdout.fnmatch_lines_random(["*test_decode[[]*tiny-nf4-eager[]]", "*test_default[[]bf16[]]", "*[[]int8[]]"])


@pytest.mark.parametrize("flag", ["--device=cpu", "--llmperf-device=cpu"])
def test_both_device_options_serve(project, flag):
    """``--device`` is short for ``--llmperf-device``."""
    project.write(conftest="def pytest_report_header(config): return 'got ' + str(config.getoption('llmperf_device'))")
    result = project.pytester.runpytest("--llmperf", flag, "--collect-only")
    result.stdout.fnmatch_lines(["llmperf: device cpu,*"])


def test_device_steps_aside_for_a_conftest_that_owns_it(project):
    """Many ML projects have a ``--device`` option of their own."""
    project.write(conftest="def pytest_addoption(parser): parser.addoption('--device', default='theirs')")
    result = project.pytester.runpytest("--llmperf", "--device=tpu", "--llmperf-device=cpu", "--collect-only")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["llmperf: device cpu,*"])


def test_the_package_shows_its_public_names():
    """Every listed name exists, including the lazily imported ones."""
    import pytest_llmperf

    assert all(getattr(pytest_llmperf, name) for name in pytest_llmperf.__all__)
    assert sys.modules["pytest_llmperf"].__version__


def test_a_fixture_of_the_same_name_makes_no_perf_test(project):
    """A project's own ``engine`` fixture or parameter does not make a test a perf test."""
    project.write("""
        import pytest

        @pytest.fixture
        def engine():
            return "sqlite"

        def test_database(engine):
            assert engine == "sqlite"

        @pytest.mark.parametrize("llm", ["a name"])
        def test_name(llm):
            assert llm == "a name"
    """)
    project.pytester.runpytest("-q").assert_outcomes(passed=2)
    assert project.run().ret == pytest.ExitCode.NO_TESTS_COLLECTED
