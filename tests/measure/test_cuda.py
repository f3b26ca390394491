"""Tests that need a CUDA device; skipped without one."""

from __future__ import annotations

import json

import pytest
from continuous_batching import needs_continuous_batching

torch = pytest.importorskip("torch")

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def test_the_matrix_is_measured_by_events_with_allocator_peaks(project):
    """Every configuration at two batch sizes: CUDA events, allocated and reserved peaks of every phase."""
    project.pytester.makeconftest("")
    result = project.pytester.runpytest_subprocess(
        "--llmperf", "--device=cuda", "--llmperf-model=synthetic:tiny", "--pyargs", "pytest_llmperf.suite",
        "--llmperf-quantization=bf16,fp16,nf4,nf4-dq,int8,int8-decomp", "--llmperf-batch-sizes=1,8",
        "--llmperf-execution=generate,loop", "--llmperf-update", "--llmperf-force-update", "--llmperf-explain=off",
    )  # fmt: skip
    assert result.ret == 0, result.outlines
    result.assert_outcomes(passed=24)
    stored = json.loads(project.baseline().read_text())
    assert {row["clock"] for row in stored["observations"]} == {"cuda events"}
    peaks = [cell for cell in stored["cells"] if cell["metric"].endswith(("allocated_bytes", "reserved_bytes"))]
    assert all(cell["value"] > 0 for cell in peaks)


EXACT = ("operators_per_token", "kernel_launches_per_token", "syncs_per_token", "decode_peak_allocated",
         "prefill_peak_allocated", "weights", "kv_cache")  # fmt: skip


def test_identical_runs_agree_on_every_exact_metric(project):
    """Exact metrics are exact on a GPU too; kernels and synchronizations have a value if profiles agree."""
    arguments = (
        "--llmperf", "--device=cuda", "--llmperf-model=synthetic:tiny", "--llmperf-update", "--llmperf-force-update",
        f"--llmperf-gate={','.join(EXACT)}",
        "--llmperf-explain=off",
    )  # fmt: skip
    project.write(conftest="")
    for _ in range(2):
        result = project.pytester.runpytest_subprocess(*arguments)
        assert result.ret == 0, result.outlines
    result.stdout.re_match_lines([r"llmperf: 1 test, ([567]) of \1 gating cells decided: \1 unchanged"])


def test_a_decode_is_profiled_and_its_device_read():
    """Kernels and shares of every execution; copying each token to the host synchronizes."""
    from pytest_llmperf import ModelSpec
    from pytest_llmperf.measure.bench import Bench
    from pytest_llmperf.measure.generation import Plan

    bench = Bench("cuda")
    loaded = bench.models.get(ModelSpec("synthetic:tiny", "bf16"))
    results = {}
    for execution in ("generate", "loop"):
        plan = Plan(
            batch_size=1, input_tokens=8, output_tokens=16, execution=execution, requests=3, warmup_cap=5
        )  # fmt: skip
        results[execution] = bench.measure(loaded, plan, test=execution, run_id="run")
    for result in results.values():
        assert result.value("kernel_launches_per_token") > 0
        assert 0 <= result.value("host_share") < 1
        assert result.value("bandwidth_share") > 0
        assert result.observation.conditions["copy_bytes_per_s"] > 0
        energy = next(cell for cell in result.cells if cell.metric == "energy_mj_per_token")
        assert energy.reason if energy.value is None else energy.value > 0
    assert results["generate"].value("syncs_per_token") >= 1
    assert results["loop"].value("syncs_per_token") < results["generate"].value("syncs_per_token")
    bench.models.release()


@needs_continuous_batching
def test_requests_are_served_and_their_memory_is_followed(project):
    """By every scheduler; the allocator's peaks include the work of the other thread."""
    project.pytester.makeconftest("")
    result = project.pytester.runpytest_subprocess(
        "--llmperf", "--device=cuda", "--llmperf-model=synthetic:tiny", "--pyargs", "pytest_llmperf.suite.serving",
        "--llmperf-quantization=bf16,nf4,int8", "--llmperf-throughput-lengths=8-64", "--llmperf-update",
        "--llmperf-force-update", "--llmperf-explain=off",
    )  # fmt: skip
    result.assert_outcomes(passed=6)
    stored = json.loads(project.baseline().read_text())
    peaks = [cell for cell in stored["cells"] if cell["metric"].startswith("serving_peak")]
    assert len(peaks) == 3 * 4 * 3
    assert all(cell["value"] > 0 for cell in peaks)


def test_clocks_are_read_where_nvml_tells_them():
    """Clocks under load are those of a busy device."""
    from pytest_llmperf.hardware.gpu_monitor import GpuWatch
    from pytest_llmperf.measure.guards import watch
    from pytest_llmperf.measure.progress import TIMED_REQUESTS, Progress

    progress = Progress("cuda:0")
    matrix = torch.randn(4096, 4096, device="cuda", dtype=torch.float16)
    with watch("cuda:0", progress) as watched:
        progress.enter(TIMED_REQUESTS)
        for _ in range(3):
            for _ in range(50):
                matrix @ matrix
            torch.cuda.synchronize()
            progress.tell_request(None)
        progress.enter("prefill")
        conditions = watched.gpu.conditions()
    if not isinstance(watched.gpu, GpuWatch):
        pytest.skip(conditions.nvml_reason)
    assert 0 < conditions.sm_clock_under_load_mhz <= 1.05 * conditions.sm_clock_full_mhz
    shares = [share for name, share in vars(conditions).items() if name.endswith("_violation_share")]
    assert all(share is None or 0 <= share <= 1.5 for share in shares), "the driver counts in another unit"


def test_64_mib_on_the_device_are_seen_to_the_byte(project):
    """The allocator's peak is reset at the start of the block."""
    project.write(
        """
        import torch

        def test_block(peak_memory):
            with peak_memory() as nothing:
                pass
            with peak_memory() as peak:
                torch.zeros(64 << 20, dtype=torch.uint8, device="cuda")
            assert peak.allocated_bytes - nothing.allocated_bytes == 64 << 20
        """,
        conftest="",
    )
    project.pytester.runpytest_subprocess("--llmperf", "--device=cuda").assert_outcomes(passed=1)


@pytest.fixture
def timer():
    from pytest_llmperf.measure.kernel import KernelTimer

    return KernelTimer.on("cuda")


@pytest.mark.parametrize("flush_l2", [False, True], ids=["warm", "flushed"])
def test_a_product_is_timed_by_events_and_by_replays(timer, flush_l2):
    """Eager and replayed, with and without flushes; every sample is positive."""
    matrix = torch.randn(2048, 2048, device="cuda", dtype=torch.float16)
    timing = timer(torch.mm, matrix, matrix, flush_l2=flush_l2)
    assert timing.clock == "cuda events"
    assert (timing.graph_reason, timing.flushed_l2) == ("", flush_l2)
    assert min(len(timing.samples_ms), len(timing.graph_samples_ms)) >= 10
    assert timing.graph_sized
    assert min(timing.samples_ms + timing.graph_samples_ms) > 0
    assert timing.roofline(limits=timer.limits("float16"), operations=2 * 2048**3).matrix_share > 0


def item(tensor):
    """A call that torch reports as synchronizing."""
    return tensor.sum().item()


def synchronize(tensor):
    """A call that synchronizes unknown to torch, so the capture fails."""
    torch.cuda.synchronize()
    return tensor + 1


def draw_and_synchronize(tensor):
    """A capture that fails after drawing random numbers."""
    return synchronize(tensor + torch.rand_like(tensor))


@pytest.mark.parametrize("fn", [item, synchronize, draw_and_synchronize])
def test_what_cannot_be_captured_leaves_the_device_as_it_was(timer, fn):
    """Stream, allocator and random state work, and the next callable can be captured."""
    ones = torch.ones(1 << 20, device="cuda")
    stream, state = torch.cuda.current_stream(), torch.cuda.get_rng_state()
    timing = timer(fn, ones)
    assert len(timing.samples_ms) >= 10
    assert not timing.graph_used
    assert timing.graph_reason
    assert torch.cuda.current_stream() == stream
    assert torch.cuda.get_sync_debug_mode() == 0
    torch.cuda.empty_cache()
    torch._C._host_emptyCache()
    torch.cuda.set_rng_state(state)
    first = torch.rand(4, device="cuda")
    torch.cuda.set_rng_state(state)
    assert torch.equal(first, torch.rand(4, device="cuda"))
    assert timer(torch.add, ones, ones).graph_used


def test_memory_of_a_graph_is_given_back(timer):
    """Memory allocated for timing is free afterwards."""
    ones = torch.ones(1 << 20, device="cuda")
    timer(torch.add, ones, 1)
    before = torch.cuda.memory_allocated()
    assert timer(torch.add, ones, 1, flush_l2=True).graph_used
    assert torch.cuda.memory_allocated() == before


def test_a_figure_of_memory_has_no_workspace_of_what_ran_before(project):
    """Each timing multiplies on another stream, for which cuBLAS allocates a workspace."""
    project.write(
        """
        import torch

        def test_block(peak_memory, cuda_timer):
            matrix = torch.ones(256, 256, device="cuda", dtype=torch.bfloat16)
            peaks = []
            for number in range(4):
                with peak_memory() as peak:
                    matrix @ matrix
                peaks.append(peak.allocated_bytes)
                cuda_timer(torch.mm, matrix, matrix, name=str(number))
            assert len(set(peaks)) == 1
        """,
        conftest="",
    )
    project.pytester.runpytest_subprocess("--llmperf", "--device=cuda").assert_outcomes(passed=1)


def test_a_device_that_dies_ends_the_run(project):
    """After a failed assertion in a kernel, every call fails."""
    project.write(
        """
        import torch

        def test_before(cuda_timer):
            cuda_timer(torch.add, torch.ones(8, device="cuda"), 1)

        def test_kills(cuda_timer):
            torch.ones(8, device="cuda")[torch.tensor([9], device="cuda")]

        def test_after(cuda_timer):
            cuda_timer(torch.add, torch.ones(8, device="cuda"), 1)
        """,
        conftest="",
    )
    result = project.pytester.runpytest_subprocess("--llmperf", "--device=cuda")
    assert result.ret == 1
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["failed: cuda:0 died in *test_kills: *; tests not run: 1 (*"])


def test_kernels_of_bitsandbytes_are_timed(project):
    """Each test passes, or reports that the backend lacks the operator."""
    project.pytester.makeconftest("")
    result = project.pytester.runpytest_subprocess(
        "--llmperf", "--device=cuda", "--pyargs", "pytest_llmperf.suite.kernels"
    )
    assert result.ret == 0, result.outlines
    assert result.parseoutcomes()["passed"] > 0


def test_the_device_timer_sees_what_the_host_does_not_wait_for():
    """The timer includes device work that the host has not waited for."""
    from pytest_llmperf import device_timer

    start = device_timer()
    torch.cuda._sleep(50_000_000)
    assert device_timer() - start > 0.01


def test_a_profile_tells_kernels_beside_operators(project):
    """By device time, from CUPTI."""
    project.write(conftest="")
    result = project.pytester.runpytest_subprocess(
        "--llmperf", "--device=cuda", "--llmperf-model=synthetic:tiny", "--llmperf-measure-only",
        "--llmperf-profile=traces", "--llmperf-json=out",
    )  # fmt: skip
    assert result.ret == 0, result.outlines
    (written,) = (project.path / "out").glob("*.json")
    decode = json.loads(written.read_text())["results"][0]["profile"]["decode"]
    assert {one.get("place", "host") for one in decode["operators"]} == {"host", "device"}
    assert sum(one["self_ms"] for one in decode["operators"] if one.get("place") == "device") > 0


def test_each_worker_has_a_gpu_of_its_own(project):
    """One worker per visible GPU."""
    models = 'import pytest\n\n@pytest.mark.parametrize("llm", ["bf16", "fp16"], indirect=True)\n'
    project.write(models + "def test_decode(llm, llmperf): llmperf.generate(llm)", conftest="")
    arguments = ("--llmperf", "--device=cuda", "--llmperf-model=synthetic:tiny", "--llmperf-update")
    result = project.pytester.runpytest_subprocess(*arguments, "-nauto")
    assert result.ret == 0, result.outlines
    runs = json.loads(project.baseline().read_text())["runs"]
    assert len({run["environment"]["device_uuid"] for run in runs}) == len(runs) == min(2, torch.cuda.device_count())
    result = project.pytester.runpytest_subprocess(*arguments, f"-n{torch.cuda.device_count() + 1}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: *workers for *"])


GRAPHS = """
import pytest
from pytest_llmperf import Graph

@pytest.mark.parametrize("llm", ["fp32", "bf16", "nf4", "int8", "int8-decomp"], indirect=True)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_graph(llm, llmperf, batch_size):
    loop = llmperf.generate(llm, batch_size=batch_size, execution="loop")
    graph = llmperf.generate(llm, batch_size=batch_size, execution=Graph(sizes=(1, 2, 4)))
    llmperf.speedup(graph, over=loop)
    assert graph.value("graph_memory") > 0
    assert graph.value("graph_device_memory") > 0
    if llm.spec.quantization == "fp32":  # a padded batch takes other kernels, in which one sequence may part at a tie
        assert graph.value("tokens_unlike_loop") <= (0 if batch_size == 1 else graph.workload.output_tokens)
"""


def test_decode_is_replayed_from_graphs(project):
    """For every quantization but int8-decomp, which is skipped; padding changes no token."""
    project.write(GRAPHS, conftest="")
    result = project.pytester.runpytest_subprocess(
        "--llmperf", "--device=cuda", "--llmperf-model=synthetic:tiny", "-rs"
    )
    result.assert_outcomes(passed=8, skipped=2)
    result.stdout.fnmatch_lines(["SKIPPED*execution 'graph': a step of LlamaForCausalLM: *"])


def test_a_step_that_cannot_be_captured_leaves_the_device_as_it_was(project):
    """The next test decodes the same model by a graph."""
    project.write(
        """
        import pytest
        from pytest_llmperf import MeasurementError

        @pytest.mark.parametrize("llm", ["fp32"], indirect=True)
        def test_graph(llm, llmperf):
            handle = llm.model.register_forward_hook(lambda *args: args[-1].logits.sum().item() and None)
            with pytest.raises(MeasurementError, match="a step of LlamaForCausalLM"):
                llmperf.generate(llm, execution="graph")
            handle.remove()
            assert llmperf.generate(llm, execution="graph").value("tokens_unlike_loop") == 0
        """,
        conftest="",
    )
    result = project.pytester.runpytest_subprocess("--llmperf", "--device=cuda", "--llmperf-model=synthetic:tiny")
    result.assert_outcomes(passed=1)


def test_compiled_decode_with_graphs_of_its_own(project):
    """With inductor's CUDA graphs: one graph, no recompilation, and the loop's tokens."""
    project.write(
        """
        import pytest
        from pytest_llmperf import Compile

        @pytest.mark.parametrize("llm", ["fp32"], indirect=True)
        @pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
        def test_compiled(llm, llmperf, mode):
            found = llmperf.generate(llm, batch_size=2, execution=Compile(mode=mode))
            assert (found.value("unique_graphs"), found.value("recompilations")) == (1, 0)
            assert found.value("tokens_unlike_loop") == 0
        """,
        conftest="",
    )
    result = project.pytester.runpytest_subprocess("--llmperf", "--device=cuda", "--llmperf-model=synthetic:tiny")
    result.assert_outcomes(passed=2)
