"""Tensors inside other objects, and the memory they hold."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from pytest_llmperf.hardware.memory import live_tensor_bytes, trace_memory
from pytest_llmperf.models.weights import weights_bytes
from pytest_llmperf.system.tensors import storage_bytes, tensors_in


class Scaled(torch.Tensor):
    """A wrapper as torchao's: it claims to be float32, has no memory, and holds int8 numbers and a scale."""

    @staticmethod
    def __new__(cls, numbers, scale):
        return torch.Tensor._make_wrapper_subclass(cls, numbers.shape, dtype=torch.float32)

    def __init__(self, numbers, scale):
        self.numbers, self.scale = numbers, scale

    def __tensor_flatten__(self):
        return ["numbers", "scale"], None

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(args[0].numbers, args[0].scale)
        raise NotImplementedError(str(func))


def scaled(rows=100):
    """1,000 bytes of numbers and 400 of scales, for 100 rows."""
    return Scaled(torch.zeros(rows, 10, dtype=torch.int8), torch.ones(rows))


def test_a_wrapper_weighs_what_is_inside():
    """It says that it has 4,000 bytes, and has no storage to ask."""
    wrapper = scaled()
    assert wrapper.nbytes == 4000
    with pytest.raises(RuntimeError):
        wrapper.untyped_storage().data_ptr()
    assert storage_bytes([wrapper]) == storage_bytes([wrapper, wrapper.numbers]) == 1400
    assert storage_bytes([Scaled(scaled(), torch.ones(5))]) == 1420, "a wrapper may hold a wrapper"


def test_a_wrapper_anywhere_in_the_process_does_not_end_a_measurement():
    """It is counted by its inner tensors, as long as it lives."""
    before = live_tensor_bytes()
    wrapper = scaled()
    assert live_tensor_bytes() - before == 1400
    with trace_memory("cpu", "first") as trace:
        torch.zeros(1 << 20, dtype=torch.uint8)
    assert trace.peaks["first"].allocated_bytes == live_tensor_bytes() + (1 << 20)
    del wrapper
    assert live_tensor_bytes() == before


def test_weights_in_wrappers():
    """1,400 bytes of weight, and 40 of bias."""
    layer = torch.nn.Linear(100, 10)
    layer.weight = torch.nn.Parameter(scaled(), requires_grad=False)
    assert weights_bytes(layer) == 1440


def test_tensors_without_memory_weigh_nothing():
    """Sparse ones, whose storage cannot be asked for."""
    assert storage_bytes([torch.eye(3).to_sparse(), torch.zeros(2)]) == 8


def test_a_fake_tensor_weighs_as_if_it_was_real():
    """Views of it weigh nothing more. It takes no memory of the process."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    before = live_tensor_bytes()
    with FakeTensorMode():
        fake = torch.empty(100)
        assert storage_bytes([fake, fake[:50], torch.empty(100)]) == 800
    assert live_tensor_bytes() == before


def test_tensors_are_found_at_any_depth():
    """In attributes, items and keys' values, once each; cycles end, and modules are not part of what refers to them."""
    one, two, three, four = (torch.zeros(number) for number in (1, 2, 3, 4))
    owner = SimpleNamespace(one=one, parts=[(two, {"three": three})], model=torch.nn.Linear(5, 5), wrapper=scaled())
    owner.itself, owner.again = owner, [one, SimpleNamespace(four=four)]
    found = {id(tensor) for tensor in tensors_in(owner)}
    assert found == {id(tensor) for tensor in (one, two, three, four, owner.wrapper.numbers, owner.wrapper.scale)}
    assert len(list(tensors_in(owner))) == len(found)
