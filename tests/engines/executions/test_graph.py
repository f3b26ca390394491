"""Decode by CUDA graphs: padding, capture order, memory and tokens. Graphs are recorded and replayed on a CPU."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from recording_cuda import RecordingCuda

from pytest_llmperf import Graph, ModelSpec
from pytest_llmperf.engines.conditions import measuring_conditions
from pytest_llmperf.engines.executions import graph
from pytest_llmperf.engines.executions.execution import unnoticed
from pytest_llmperf.engines.executions.greedy_loop import greedy_loop
from pytest_llmperf.engines.executions.read_back import why_read_back
from pytest_llmperf.errors import ExecutionUnavailable, MeasurementError, UsageError
from pytest_llmperf.hardware.clock import HostClock
from pytest_llmperf.measure.generation import Plan, measure_generation
from pytest_llmperf.measure.prompt import random_prompt
from pytest_llmperf.models.load import load


@pytest.fixture(scope="module")
def tiny(model_cache):
    return load(ModelSpec("synthetic:tiny", "fp32"), "cpu").model


@pytest.fixture
def cuda(monkeypatch, tiny) -> RecordingCuda:
    """Replaces ``torch.cuda``; graphs hold CPU work."""
    if reason := why_read_back(tiny.config):
        pytest.skip(reason)
    return replace_cuda(monkeypatch)


def replace_cuda(monkeypatch):
    fake = RecordingCuda()
    monkeypatch.setattr(torch, "cuda", fake)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", fake.end_allocate, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", fake.release_pool, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", fake.clear_workspaces, raising=False)
    monkeypatch.setattr(graph, "why_no_graphs", lambda device: "")
    return fake


def measured(model, *, batch_size=1, execution="graph", **changes):
    plan = Plan(
        batch_size=batch_size, input_tokens=5, output_tokens=6, execution=execution, requests=2, warmup_cap=0, **changes
    )
    found = measure_generation(model, plan, device="cpu", clock=HostClock())
    return found, {figure.metric: figure.value for figure in found.figures}


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_tokens_are_those_of_the_loop(tiny, cuda, batch_size):
    """For a captured batch size and a padded one; every step but the first is a replay."""
    found, figures = measured(tiny, batch_size=batch_size)
    plain, _ = measured(tiny, batch_size=batch_size, execution="loop")
    assert found.counts.token_digest == plain.counts.token_digest
    assert figures["tokens_unlike_loop"] == 0
    requests, rest = divmod(len(cuda.replayed) - len(cuda.captured), 5)
    assert requests >= 1 + 2 + 1, "disturbed ones are made again"
    assert rest == 0
    assert not found.counts.figures


def test_tokens_that_differ_are_counted(tiny, cuda, monkeypatch):
    """A wrong step in a graph is wrong in every replay."""
    right = graph.next_token
    monkeypatch.setattr(graph, "next_token", lambda *args: right(*args) ^ 1)
    _, figures = measured(tiny, batch_size=2)
    assert figures["tokens_unlike_loop"] == 2 * 5


def test_sizes_are_captured_largest_first_from_one_pool(tiny, cuda):
    """Up to the one that the batch is padded to; that one is replayed, and all are given back.

    Their memory does not tell what cuBLAS had before.
    """
    cuda.multiply(1)
    with measuring_conditions(), Graph(sizes=(1, 2, 4, 16)).open(tiny, prompt(tiny, 3), 4, HostClock()) as opened:
        sizes = [graph.recorder.calls[0][1][1].shape[0] for graph in cuda.captured]
        assert sizes == [4, 2, 1]
        assert cuda.pools == 1
        assert cuda.streams == [cuda.streams[0]] * 3, "torch shares a pool's memory within one stream"
        cuda.replayed.clear()
        generated = opened.request(4, unnoticed)
        assert cuda.replayed == [cuda.captured[0]] * 3
        assert generated.tokens.shape == (3, 4)
        assert [tuple(layer.keys.shape)[::2] for layer in generated.cache.layers] == [(4, 5 + 3)] * 2
        figures = {figure.metric: figure.value for figure in opened.figures()}
        assert figures["graph_memory_bytes"] == 3 << 20
        assert figures["graph_device_memory_bytes"] == 9 << 20
        assert figures["capture_ms"] > 0
    assert cuda.resets == 3
    assert cuda.is_as_before


def test_a_shorter_request_is_the_same_from_the_start(tiny, cuda):
    """Warm-up makes such requests."""
    with measuring_conditions(), Graph().open(tiny, prompt(tiny, 2), 6, HostClock()) as opened:
        long, short = (opened.request(tokens, unnoticed).tokens for tokens in (6, 3))
        assert torch.equal(long[:, :3], short)
        assert torch.equal(long, greedy_loop(tiny, prompt(tiny, 2), 6, unnoticed).tokens)


def prompt(model, batch_size):
    return random_prompt(model.config, batch_size=batch_size, input_tokens=5, seed=0)


@pytest.fixture
def asks_the_device(tiny):
    """A model whose every forward copies a number to the host."""
    handle = tiny.register_forward_hook(lambda _module, _args, out: out.logits[0, 0, 0].item() and None)
    yield tiny
    handle.remove()


def test_a_step_that_cannot_be_captured_is_an_error(asks_the_device, cuda):
    """The execution was requested; nothing is left of the capture."""
    with pytest.raises(
        MeasurementError, match=r"'graph': a step of LlamaForCausalLM: capture failed: .* not permitted"
    ):
        measured(asks_the_device)
    assert cuda.is_as_before


def test_what_no_graph_can_hold_is_unavailable(asks_the_device, cuda, monkeypatch):
    """LLM.int8() with a threshold counts its outliers on the host by design."""
    config = SimpleNamespace(load_in_8bit=True, llm_int8_threshold=6.0)
    monkeypatch.setattr(asks_the_device.config, "quantization_config", config, raising=False)
    with pytest.raises(ExecutionUnavailable, match="a step of LlamaForCausalLM"):
        measured(asks_the_device)
    assert cuda.is_as_before


def test_a_cache_that_counts_on_the_host_is_unavailable(tiny, cuda, monkeypatch):
    """A graph would freeze the length of a sliding window."""
    monkeypatch.setattr(tiny.config, "layer_types", ["sliding_attention"] * 2, raising=False)
    monkeypatch.setattr(tiny.config, "sliding_window", 4, raising=False)
    with pytest.raises(ExecutionUnavailable, match="cache layers of type StaticSlidingWindowLayer count positions on"):
        measured(tiny)
    assert not cuda.captured


def test_a_step_that_reads_back_by_design_is_unavailable(tiny, monkeypatch):
    """The reason names the RoPE type, or the transformers version if it is too old."""
    replace_cuda(monkeypatch)
    monkeypatch.setattr(tiny.config, "rope_parameters", {"rope_type": "dynamic", "factor": 2.0}, raising=False)
    reason = r"'graph' cannot run here: (RoPE of type 'dynamic' copies|transformers \S+ copies .* 5.4 or later)"
    with pytest.raises(ExecutionUnavailable, match=reason):
        measured(tiny)


def test_a_device_without_graphs_is_unavailable(tiny):
    with pytest.raises(ExecutionUnavailable, match=r"execution 'graph' cannot run here: cpu has no CUDA graphs"):
        measured(tiny)


@pytest.mark.parametrize(
    ("execution", "changes", "message"),
    [
        (Graph(sizes=(1, 2)), {"batch_size": 3}, r"a batch of 3 exceeds the captured sizes \(1,2\)"),
        (Graph(), {"output_tokens": 1}, "output_tokens=1 has no decode to compile or capture"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(tiny, cuda, execution, changes, message):
    """Each error is one line."""
    base = {"batch_size": 1, "input_tokens": 5, "output_tokens": 4, "requests": 1, "warmup_cap": 0}
    with pytest.raises(UsageError, match=message):
        measure_generation(tiny, Plan(**base | changes, execution=execution), device="cpu", clock=HostClock())


@pytest.mark.parametrize("sizes", [(0,), (1.5,), ("2",)])
def test_sizes_are_whole_numbers(sizes):
    with pytest.raises(UsageError, match=r"graph: sizes=.*: expected a whole number of at least 1"):
        Graph(sizes=sizes)


def test_sizes_are_part_of_the_workload():
    """In any order."""
    assert Graph(sizes=(4, 1)).settings == {"cache": "static", "sizes": "1,4"}


def test_a_test_of_graphs_is_skipped_with_its_reason(project):
    """Without CUDA graphs, no fall-back is measured."""
    project.write("""
        import pytest
        from pytest_llmperf import Graph

        @pytest.mark.parametrize("llm", ["fp32"], indirect=True)
        @pytest.mark.parametrize("execution", ["graph", Graph(sizes=(1, 2))], ids=["default", "small"])
        def test_graph(llm, llmperf, execution):
            llmperf.generate(llm, execution=execution)
    """)
    result = project.run("-rs")
    assert result.ret == 0
    result.assert_outcomes(skipped=2)
    result.stdout.fnmatch_lines(["*Nothing was verified.", "SKIPPED*'graph' cannot run here: cpu has no CUDA graphs"])
