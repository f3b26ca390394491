"""``--device`` is our option unless a plugin or a conftest defines it."""

from __future__ import annotations

import sys

import pytest

DECLARES = "def pytest_addoption(parser):\n    parser.addoption('--device', default='cpu', choices=['cpu', 'gpu'])\n"
HEADER = "llmperf: device cpu,*"


@pytest.fixture
def with_a_late_conftest(project):
    """A project with a conftest in a subfolder, which pytest reads when it collects that folder."""
    project.write(conftest="")
    folder = project.path / "unit" / "gpu"
    folder.mkdir(parents=True)
    (folder / "conftest.py").write_text(DECLARES)
    (folder / "test_gpu.py").write_text(
        "def test_gpu(request):\n    assert request.config.getoption('--device') == 'cpu'"
    )
    return project


def test_a_conftest_that_is_read_late_may_declare_it(with_a_late_conftest):
    """This holds in a perf run too, where ``--device`` is ours."""
    pytester = with_a_late_conftest.pytester
    pytester.runpytest("-q").assert_outcomes(passed=1, deselected=1)
    for given in ("--device=cpu", "--llmperf-device=cpu"):
        result = pytester.runpytest("--llmperf", given, "--collect-only", "-q")
        assert result.ret == 0
        result.stdout.fnmatch_lines(["test_perf.py::test_decode[[]fp32[]]"])


def test_without_the_flag_it_is_unknown(project):
    """Without ``--llmperf``, pytest rejects ``--device`` as if the plugin was not installed."""
    project.write(conftest="")
    result = project.pytester.runpytest("--device=cpu")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*unrecognized arguments: --device=cpu"])


@pytest.mark.parametrize("arguments", [("--device=cpu",), ("--device", "cpu"), ("--device=mps", "--device", "cpu")])
def test_it_is_taken_in_each_form(project, arguments):
    project.write(conftest="")
    project.pytester.runpytest("--llmperf", *arguments, "--collect-only").stdout.fnmatch_lines([HEADER])


def test_it_may_stand_wherever_arguments_come_from(project):
    """The ini file, the environment or a file of arguments may hold it."""
    project.write(conftest="")
    (project.path / "arguments").write_text("--device=cpu\n")
    collect = ("--llmperf", "--collect-only", ".")
    project.pytester.runpytest(*collect, "@arguments").stdout.fnmatch_lines([HEADER])
    project.pytester.makeini("[pytest]\naddopts = --device cpu")
    project.pytester.runpytest(*collect).stdout.fnmatch_lines([HEADER])
    project.pytester.makeini("[pytest]")
    project.monkeypatch.setenv("PYTEST_ADDOPTS", "--device cpu -p no:hypothesispytest")
    project.pytester.runpytest(*collect).stdout.fnmatch_lines([HEADER])


@pytest.mark.parametrize("arguments", [("--device",), ("--device", "-q")])
def test_without_a_value_it_is_refused_in_a_line(project, arguments):
    project.write(conftest="")
    result = project.pytester.runpytest("--llmperf", *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --device: expected one argument"])


def test_other_arguments_stay_as_they_are(project):
    """Paths, values of options, and words after ``--`` are left unchanged."""
    project.write(conftest="")
    arguments = (
        "--llmperf",
        "-k",
        "decode",
        "--device",
        "cpu",
        "--collect-only",
        "-q",
        "-p",
        "no:benchmark",
        "--",
        ".",
    )
    result = project.pytester.run(sys.executable, "-m", "pytest", *arguments)
    result.stdout.fnmatch_lines(["test_perf.py::test_decode[[]fp32[]]"])


def test_help_names_it(project):
    """Help lists it unless another plugin defines it."""
    project.write(conftest="")
    project.pytester.runpytest("--llmperf", "--help").stdout.fnmatch_lines(["*--device=DEVICE*"])
    project.write(conftest=DECLARES)
    project.pytester.runpytest("--llmperf", "--help").stdout.no_fnmatch_line("*--device=DEVICE*")


def test_workers_of_xdist_measure_on_it(project):
    project.write()
    result = project.run("-n1", "--llmperf-measure-only")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["llmperf: one worker on each of cpu"])
