"""The ``cuda_timer`` fixture in a user's project."""

from __future__ import annotations

import pytest
import torch

from pytest_llmperf.storage.baseline_file import load_baseline

KERNEL_TEST = """
import pytest
import torch


@pytest.mark.parametrize("size", [8, 16])
def test_matmul(cuda_timer, size):
    matrix = torch.ones(size, size)
    timing = cuda_timer(torch.mm, matrix, matrix, repetitions=3)
    assert len(timing.samples_ms) == 3
    assert timing.graph_reason == "cpu has no CUDA graphs"
"""

TELL_LOADS = """
from pytest_llmperf.runner import WORKPLACE


def pytest_unconfigure(config):
    print("models loaded:", config.stash[WORKPLACE].loads)
"""

TIMED = (
    "timed: test_perf.py::test_matmul?8?: mm: * ms eager (MAD * ms, 3 samples, *), no graph: cpu has no CUDA graphs*"
)


def test_a_kernel_is_timed_with_no_model(project):
    """The fixture makes it a perf test; its timings are shown, without warnings."""
    project.write(KERNEL_TEST, conftest=TELL_LOADS)
    result = project.run()
    assert result.ret == 0, result.outlines
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines([TIMED, "timed: test_perf.py::test_matmul?16?: *", "models loaded: 0"])
    result.stdout.no_fnmatch_line("*invalid*")
    result.stdout.fnmatch_lines(["test *call *baseline *change *verdict", "test_matmul?8? *s * new"])
    assert not (project.path / "baselines").exists()


def test_a_kernel_is_recorded_and_gated(project):
    """Like a model's figures: by callable, arguments and kind of timing."""
    project.write(KERNEL_TEST)
    project.record(1.0, 1.0, 1.0, 1.0, 1.0)
    stored = load_baseline(project.baseline())
    assert {workload.settings["arguments"] for workload in stored.workloads.values()} == {
        "float32[8, 8], float32[8, 8]", "float32[16, 16], float32[16, 16]"}  # fmt: skip
    assert {(cell.metric, cell.value) for cell in stored.cells} == {("call_ms", 1.0)}
    project.run("--llmperf-catch=20%", "--llmperf-strict").assert_outcomes(passed=2)
    slower = project.run("--llmperf-catch=20%", step_ms=1.5)
    slower.assert_outcomes(failed=2)
    slower.stdout.fnmatch_lines(["call ×1.500 *: 1.50 ms > 1.00 ms baseline, *"])


def test_other_arguments_are_not_compared(project):
    """A larger matrix is another workload."""
    project.write(KERNEL_TEST)
    project.record(1.0)
    project.write(KERNEL_TEST.replace("torch.ones(size, size)", "torch.ones(size, 2 * size).mT @ torch.ones(size, 3)"
                                      ).replace("matrix, matrix", "matrix.mT, matrix"))  # fmt: skip
    result = project.run()
    result.stdout.fnmatch_lines(["not comparable: 1 cell of 1 test (call): workload arguments: float32?8, 8?, *"])


def test_the_fixture_makes_a_perf_test(project):
    """A plain pytest run skips it."""
    project.write(KERNEL_TEST, conftest="")
    project.pytester.runpytest_inprocess().assert_outcomes(deselected=2)


def test_isolated_processes_tell_their_timings(project):
    """They are shown as in the run itself."""
    project.write(KERNEL_TEST, conftest="")
    result = project.run("--llmperf-isolate")
    assert result.ret == 0, result.outlines
    result.stdout.fnmatch_lines([TIMED])


def test_a_timing_does_not_stand_in_for_a_model(project):
    """A test that requests a model and does not measure it is reported."""
    project.write(
        """
        def test_both(llmperf, cuda_timer):
            cuda_timer(sum, [1, 2], repetitions=1)
        """,
        conftest="",
    )
    result = project.run("--llmperf-fail-on=invalid")
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        ["invalid: test_perf.py::test_both: the test measured nothing", "failed: nothing was measured"]
    )


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("cuda_timer(lambda: 1 / 0)", "ZeroDivisionError: division by zero"),
        (
            "cuda_timer(sum, [1]); cuda_timer(sum, [1])",
            "*MeasurementError: * timed sum twice with the same arguments; *",
        ),
        ("cuda_timer(sum, [1], name='')", "*UsageError: cuda_timer: name='': expected a non-empty string"),
        ("cuda_timer(sum, [1], repetitions=0)", "*UsageError: repetitions=0: expected a whole number of at least 1"),
    ],
)
def test_errors_surface_as_themselves(project, body, message):
    """With their own traceback."""
    project.write(f"def test_it(cuda_timer):\n    {body}\n", conftest="")
    result = project.run()
    assert result.ret == 1
    result.stdout.fnmatch_lines([f"E  *{message}"])


def test_work_is_not_injected_where_there_are_no_forwards(project):
    """The injection would have no effect."""
    project.write("def test_it(cuda_timer):\n    cuda_timer(sum, [1])\n", conftest="")
    result = project.run("--llmperf-inject=work:+15%")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*UsageError: --llmperf-inject work:+15%: a callable has no forwards to slow down*"])


SMALL = """
import pytest_llmperf.hardware.l2_cache as l2_cache
import pytest_llmperf.suite.kernels as kernels

l2_cache._host_cache_bytes = lambda: 1 << 20  # flushing a server's cache of hundreds of MiB takes 50 ms a call
kernels.SHAPES[:] = [(64, 128)]
"""
ANY_KERNEL = f"""{SMALL}
kernels._has_kernel = lambda name, kind: True
"""


def test_kernels_compute_what_they_are_for(project):
    """Checked with bitsandbytes' fall-backs, which the suite does not time; missing operators are skipped."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    project.pytester.makeconftest(ANY_KERNEL)
    result = project.run("--pyargs", "pytest_llmperf.suite.kernels", "-rs")
    assert result.ret == 0, result.outlines
    assert result.parseoutcomes()["passed"] >= 12
    if not hasattr(torch.ops.bitsandbytes, "gemm_4bit"):
        result.stdout.fnmatch_lines([f"SKIPPED*: bitsandbytes {bitsandbytes.__version__} has no operator gemm_4bit"])


def test_kernels_are_timed_by_the_name_of_their_module(project):
    """The suite as a whole, which measures a model, excludes them."""
    pytest.importorskip("bitsandbytes")
    project.pytester.makeconftest(SMALL)
    result = project.run("--pyargs", "pytest_llmperf.suite.kernels")
    counts = result.parseoutcomes()
    assert result.ret == 0, result.outlines
    assert counts.get("passed", 0) + counts.get("skipped", 0) == 21
    whole = project.run("--pyargs", "pytest_llmperf.suite", "--collect-only", "-q")
    whole.stdout.no_fnmatch_line("*kernels*")
