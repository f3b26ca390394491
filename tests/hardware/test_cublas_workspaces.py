"""cuBLAS workspaces, with an allocator that charges 32 MiB per stream: memory figures exclude those of earlier work."""

from __future__ import annotations

import weakref

import pytest
import torch
from fake_cuda import WORKSPACE, FakeCuda

from pytest_llmperf.hardware import cublas_workspaces
from pytest_llmperf.hardware.clock import EventClock
from pytest_llmperf.hardware.cublas_workspaces import clear_workspaces
from pytest_llmperf.hardware.cuda_graph import captured
from pytest_llmperf.hardware.memory import trace_memory
from pytest_llmperf.measure.kernel import KernelTimer


class OthersGraph:
    """A ``torch.cuda.CUDAGraph`` that other code created."""


class ChargingCuda(FakeCuda):
    """Tracks memory peaks and frees like the caching allocator."""

    peak = reserved_peak = cached = 0

    def multiply(self, milliseconds: float) -> None:
        before = self.memory_allocated()
        super().multiply(milliseconds)
        self.cached = max(0, self.cached - (self.memory_allocated() - before))
        self._note()

    def clear_workspaces(self) -> None:
        self.cached += self.memory_allocated()
        super().clear_workspaces()

    def empty_cache(self) -> None:
        self.cached = 0

    def reset_peak_memory_stats(self, _device: str) -> None:
        self.peak = self.reserved_peak = 0
        self._note()

    def max_memory_allocated(self, _device: str) -> int:
        return self.peak

    def max_memory_reserved(self, _device: str) -> int:
        return self.reserved_peak

    def _note(self) -> None:
        allocated = self.memory_allocated()
        self.peak = max(self.peak, allocated)
        self.reserved_peak = max(self.reserved_peak, allocated + self.cached)


@pytest.fixture
def cuda(monkeypatch) -> ChargingCuda:
    """Replaces ``torch.cuda``."""
    fake = ChargingCuda()
    monkeypatch.setattr(torch, "cuda", fake)
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", fake.clear_workspaces, raising=False)
    return fake


def test_a_graph_has_its_workspace_in_its_pool_and_leaves_none_behind(cuda):
    """Whatever the streams had before: the fake refuses a graph that would write outside of its pool."""
    cuda.multiply(1)
    for _ in range(3):
        with captured("cuda:0", lambda: cuda.multiply(1), 2) as graph:
            assert graph.has_workspace
            assert cuda.memory_allocated() == 0
        assert cuda.memory_allocated() == 0


def test_what_was_timed_is_in_no_later_figure(cuda):
    """Each timing uses another stream, whose workspace would remain."""
    timer = KernelTimer("cuda:0", EventClock(cuda, "cuda:0"))
    assert peaks_of_a_product(cuda) == (WORKSPACE, WORKSPACE)
    for number in range(4):
        assert timer(lambda: cuda.multiply(1), name=str(number)).graph_used
    assert peaks_of_a_product(cuda) == (WORKSPACE, WORKSPACE)
    with cuda.stream(cuda.Stream()):
        cuda.multiply(1)
    assert peaks_of_a_product(cuda) == (WORKSPACE, WORKSPACE)


def peaks_of_a_product(cuda):
    with trace_memory("cuda:0", "prefill") as trace:
        cuda.multiply(1)
    peak = trace.peaks["prefill"]
    return peak.allocated_bytes, peak.reserved_bytes


def test_nothing_is_freed_that_a_graph_of_somebody_else_may_write_to(cuda):
    """It is freed once that graph is gone."""
    cuda.multiply(1)
    cuda.CUDAGraph = OthersGraph
    graph = OthersGraph()
    clear_workspaces()
    assert cuda.memory_allocated() == WORKSPACE
    cublas_workspaces._captured_here.add(graph)
    clear_workspaces()
    assert cuda.memory_allocated() == 0
    gone = weakref.ref(graph)
    del graph
    assert gone() is None


def test_a_build_without_them_has_nothing_to_free(monkeypatch):
    """As in torch for CPUs."""
    monkeypatch.delattr(torch._C, "_cuda_clearCublasWorkspaces", raising=False)
    clear_workspaces()
