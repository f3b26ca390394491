"""Memory peaks by phase."""

from __future__ import annotations

import pytest
import torch

from pytest_llmperf.hardware.memory import live_tensor_bytes, trace_memory


def test_cpu_memory_is_followed_by_phase_to_the_byte():
    """Held memory counts in later phases; freed memory does not."""
    held = []
    with trace_memory("cpu", "first") as trace:
        torch.zeros(32 << 20, dtype=torch.uint8)
        held.append(torch.zeros(8 << 20, dtype=torch.uint8))
        trace.enter("second")
        torch.zeros(16 << 20, dtype=torch.uint8)
    first, second = trace.peaks["first"].allocated_bytes, trace.peaks["second"].allocated_bytes
    assert first - second == (32 - 8 - 16) << 20


def test_operators_are_not_recorded():
    """Only allocations and marks are read; events of operators cost more time than all else."""
    with trace_memory("cpu", "first") as trace:
        torch.zeros(1 << 20).sum()
    recorded = trace._device._profile.kineto_results.events()
    assert {event.name() for event in recorded} == {"[memory]", "llmperf phase"}


def test_memory_is_followed_to_the_end_of_a_block_that_raises():
    """The profiler is stopped."""
    with pytest.raises(ZeroDivisionError), trace_memory("cpu", "first"):
        raise ZeroDivisionError
    with trace_memory("cpu", "second") as trace:
        pass
    assert trace.peaks["second"].allocated_bytes is not None


def test_what_raised_is_told_although_the_phase_had_not_begun(monkeypatch):
    """A time limit may expire between two phases."""
    with pytest.raises(TimeoutError, match="too long"), trace_memory("cpu", "first") as trace:  # noqa: PT012  # so it is
        monkeypatch.setattr(trace._device, "enter", raising(TimeoutError("too long")))
        trace.enter("second")


def raising(error):
    def fail():
        raise error

    return fail


def test_fake_tensors_have_no_memory(recwarn):
    """Fake tensors left by torch.compile are skipped, without reading their address, which would warn."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    before = live_tensor_bytes()
    with FakeTensorMode():
        fake = torch.empty(1 << 20)
    assert live_tensor_bytes() == before
    assert fake.shape == (1 << 20,)
    assert not recwarn.list
