"""Models of a run, its end, and its journal if it dies."""

from __future__ import annotations

import json

import pytest

from pytest_llmperf import load_runs

TRACE_LOADS = """
import weakref

import pytest_llmperf.measure.bench as bench

alive = []
real = bench.load


def load(spec, device):
    print("LOAD", spec.quantization, "alive", [name for name, ref in alive if ref() is not None])
    loaded = real(spec, device)
    alive.append((spec.quantization, weakref.ref(loaded.model)))
    return loaded


bench.load = load
"""


@pytest.mark.parametrize(
    "outcome", ["pass", "model = llm.model; local = [model]; assert False"], ids=["passing", "failing"]
)
def test_each_model_loads_once_and_the_old_one_is_gone_before_the_next(project, outcome):
    """Two modules with three specs in mixed order: three loads, never two models at once, even after a failed test."""
    module = """
        import pytest
        from pytest_llmperf import ModelSpec

        @pytest.mark.parametrize("llm", {specs}, indirect=True)
        @pytest.mark.parametrize("size", [1, 2])
        def test_a(llm, size):
            {outcome}

        @pytest.mark.parametrize("llm", {reverse}, indirect=True)
        def test_b(llm):
            {outcome}
    """
    project.pytester.makeconftest(TRACE_LOADS)
    specs, reverse = '["fp32", "nf4", "int8"]', '[ModelSpec(quantization="int8"), "nf4", "fp32"]'
    project.pytester.makepyfile(
        test_one=module.format(specs=specs, reverse=reverse, outcome=outcome),
        test_two=module.format(specs=reverse, reverse=specs, outcome=outcome),
    )
    result = project.pytester.runpytest_subprocess(
        "--llmperf", "--device=cpu", "--llmperf-model=synthetic:tiny", "-s", "-p", "no:benchmark"
    )
    loads = [line.partition("LOAD ")[2] for line in result.outlines if "LOAD " in line]
    assert sorted(loads) == ["fp32 alive []", "int8 alive []", "nf4 alive []"]
    result.assert_outcomes(**({"passed": 18} if outcome == "pass" else {"failed": 18}))


INTERRUPTED = """
import os
import pytest

@pytest.mark.parametrize("llm", ["fp32"], indirect=True)
@pytest.mark.parametrize("number", [1, 2, 3])
def test_decode(llm, llmperf, number):
    if number == 3:
        {death}
    llmperf.generate(llm)
"""


@pytest.mark.parametrize("death", ["raise KeyboardInterrupt", "os.kill(os.getpid(), 9)"], ids=["interrupted", "killed"])
def test_a_run_that_dies_keeps_what_it_measured(project, death):
    """The journal holds both finished tests, as a baseline and as a table."""
    project.write(INTERRUPTED.format(death=death))
    result = project.pytester.runpytest_subprocess(
        "--llmperf", "--device=cpu", "--llmperf-model=synthetic:tiny", "--llmperf-output-tokens=3", "--llmperf-update",
        "--llmperf-requests=1", "--llmperf-warmup=0", "-p", "no:benchmark",
    )  # fmt: skip
    assert result.ret not in (0, 1)
    (journal,) = (project.path / ".llmperf" / "runs").glob("*.jsonl")
    assert set(load_runs(journal)["test"]) == {"test_perf.py::test_decode[1-fp32]", "test_perf.py::test_decode[2-fp32]"}
    assert not (project.path / "baselines").exists()


def test_one_xdist_worker_measures_and_the_controller_writes(project):
    """A crash ends only the worker; summary, verdicts and baseline equal those of a plain run. A CPU is one device."""
    project.write()
    result = project.run("-nauto", "--llmperf-update")
    assert result.ret == 0, result.outlines
    result.stdout.fnmatch_lines(["baseline updated: * holds 1 run *", "llmperf: 1 test, 0 of * 11 new*"])
    result = project.run("-n1", "--llmperf-inject=tpot:+900%")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*TPOT*baseline*", "FAILED *"])


def test_json_holds_samples_and_is_named_after_its_parameters(project):
    """One file per workload has every request and every inter-token latency."""
    project.write()
    assert project.run("--llmperf-json=out").ret == 0
    (written,) = (project.path / "out").glob("*.json")
    assert written.name.startswith("test-decode-synthetic-tiny-fp32-b2-4in-4out-generate-")
    (result,) = json.loads(written.read_text())["results"]
    assert result["samples"]["ttft_ms"] == [1.0, 1.0]
    assert result["samples"]["itl_ms"] == [1.0] * 6


def test_the_suite_measures_a_local_folder_with_no_test_written(project):
    """``--pyargs pytest_llmperf.suite`` needs no test files; test names do not contain the install path."""
    import shutil

    from pytest_llmperf.models import synthetic

    shutil.copytree(synthetic.prepare("synthetic:tiny"), project.path / "my-model")
    project.pytester.makeconftest("")
    result = project.run(
        "--pyargs", "pytest_llmperf.suite", "--llmperf-model=./my-model", "--llmperf-quantization=nf4,int8",
        "--llmperf-batch-sizes=1,2", "--llmperf-execution=generate,loop", "--llmperf-json=cells", "--llmperf-update",
    )  # fmt: skip
    assert result.ret == 0, result.outlines
    result.assert_outcomes(passed=8)
    assert len(list((project.path / "cells").glob("*.json"))) == 8
    tests = {cell["test"] for cell in json.loads(project.baseline().read_text())["cells"]}
    assert "pytest_llmperf.suite.test_quantization::test_generate[nf4-b1-loop]" in tests


def test_a_hub_name_loads_and_its_commit_is_the_revision(project):
    """It loads from the hub's cache, as after a download."""
    import shutil

    from pytest_llmperf.models import synthetic

    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = project.path / "hub" / "models--somebody--tiny-llama"
    shutil.copytree(synthetic.prepare("synthetic:tiny"), repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    project.monkeypatch.setenv("HF_HUB_CACHE", str(project.path / "hub"))
    project.write(conftest="")
    result = project.pytester.runpytest_subprocess(
        "--llmperf", "--device=cpu", "--llmperf-model=somebody/tiny-llama", "--llmperf-output-tokens=3",
        "--llmperf-requests=1", "--llmperf-warmup=0", "--llmperf-update", "-p", "no:benchmark",
        "--llmperf-explain=off",
    )  # fmt: skip
    assert result.ret == 0, result.outlines
    (workload,) = json.loads(project.baseline().read_text())["workloads"].values()
    assert (workload["model"], workload["revision"]) == ("somebody/tiny-llama", commit)


def test_both_executions_produce_the_same_tokens(project):
    """``generate`` and ``loop`` do the same work."""
    project.write("""
        import pytest

        @pytest.mark.parametrize("llm", ["fp32", "nf4", "int8"], indirect=True)
        def test_tokens(llm, llmperf):
            runs = [llmperf.generate(llm, batch_size=2, execution=name) for name in ("generate", "loop")]
            assert runs[0].value("token_digest") == runs[1].value("token_digest")
    """)
    project.run().assert_outcomes(passed=3)


def test_a_user_asks_the_result_for_figures(project):
    """By a metric's name; a wrong name lists the valid ones."""
    project.write("""
        import pytest
        from pytest_llmperf import UsageError

        @pytest.mark.parametrize("llm", ["fp32"], indirect=True)
        def test_figures(llm, llmperf):
            result = llmperf.generate(llm)
            assert result.value("tpot") == pytest.approx(1.0)
            assert result.observation.clock == "fake"
            assert result.observation.tokens_produced == 8
            with pytest.raises(UsageError, match="unknown metric 'speed'"):
                result.value("speed")
    """)
    project.run().assert_outcomes(passed=1)


def test_peak_memory_follows_a_block(project):
    """It reports the 64 MiB of the block, to the byte."""
    project.write("""
        import torch

        def test_block(peak_memory):
            with peak_memory() as nothing:
                pass
            with peak_memory() as peak:
                torch.zeros(64 << 20, dtype=torch.uint8)
            assert peak.allocated_bytes - nothing.allocated_bytes >= 64 << 20
            assert peak.reserved_bytes is None and "no memory pool" in peak.reason
    """)
    project.run().assert_outcomes(passed=1)


def test_the_plugin_lives_beside_pytest_benchmark(project):
    """One project uses both fixtures; a perf run deselects the tests of pytest-benchmark."""
    pytest.importorskip("pytest_benchmark")
    project.write("def test_speed(benchmark): benchmark(sum, [1])\n\ndef test_perf(llmperf): pass")
    project.run().assert_outcomes(passed=1, deselected=1)
    project.pytester.runpytest("--benchmark-disable").assert_outcomes(passed=1, deselected=1)
