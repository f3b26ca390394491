"""Which kernel attention chooses on a CUDA device that is not here: torch's rules, by shapes and capability."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from pytest_llmperf.hardware.fused_attention import KERNELS, AttentionCall, chosen_kernel

HOPPER, AMPERE, TURING = (9, 0), (8, 0), (7, 5)


@pytest.fixture(autouse=True)
def _without_cudnn(monkeypatch):
    """A build without cuDNN, as on a CPU; tests that want it say so."""
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: None)


def call(  # noqa: PLR0913  # the sizes of a call
    *, dtype="bfloat16", heads=8, kv_heads=8, tokens=16, keys=16, size=64, value_size=None, device="cuda", **more
):
    def tensor(*shape):
        with FakeTensorMode():
            return torch.empty(*shape, dtype=getattr(torch, dtype), device=device)

    return AttentionCall(
        query=tensor(2, heads, tokens, size),
        key=tensor(2, kv_heads, keys, size),
        value=tensor(2, kv_heads, keys, value_size or size),
        **more,
    )


def mask(dtype=torch.bool):
    with FakeTensorMode():
        return torch.empty(2, 1, 16, 16, dtype=dtype, device="cuda")


CHOICES = [
    ({}, AMPERE, "flash"),
    ({"dtype": "float16"}, HOPPER, "flash"),
    ({"is_causal": True}, AMPERE, "flash"),
    ({"is_causal": True, "tokens": 1}, AMPERE, "efficient"),
    ({"tokens": 1}, AMPERE, "flash"),
    ({"size": 60}, AMPERE, "flash"),
    ({"size": 512}, AMPERE, "efficient"),
    ({"size": 60, "dtype": "float32"}, AMPERE, "efficient"),
    ({"size": 61, "dtype": "float32"}, AMPERE, ""),
    ({"value_size": 32}, AMPERE, "efficient"),
    ({"dtype": "float32"}, AMPERE, "efficient"),
    ({"dtype": "float64"}, AMPERE, ""),
    ({"dtype": "float16"}, TURING, "efficient"),
    ({"dtype": "float16", "size": 60}, TURING, ""),
    ({}, TURING, ""),
    ({"kv_heads": 2}, AMPERE, ""),
    ({"kv_heads": 2, "enable_gqa": True}, AMPERE, "flash"),
    ({"dropout_p": 0.1}, AMPERE, ""),
    ({"keys": 0}, AMPERE, ""),
    ({"device": "cpu"}, AMPERE, ""),
]


@pytest.mark.parametrize(("shape", "capability", "expected"), CHOICES)
def test_the_kernel_follows_from_the_call(shape, capability, expected):
    assert chosen_kernel(call(**shape), capability) == expected


def test_a_mask_is_for_the_efficient_kernel():
    assert chosen_kernel(call(attn_mask=mask()), AMPERE) == "efficient"


@pytest.mark.parametrize(
    ("version", "capability", "more", "expected"),
    [
        (92400, HOPPER, {}, "cudnn"),
        (92400, (10, 0), {}, "cudnn"),
        (92400, HOPPER, {"attn_mask": "mask"}, "cudnn"),
        (91500, HOPPER, {}, "flash"),
        (92400, AMPERE, {}, "flash"),
        (92400, (8, 9), {}, "flash"),
        (92400, HOPPER, {"size": 256}, "flash"),
        (92400, HOPPER, {"size": 60}, "flash"),
        (92400, HOPPER, {"tokens": 1, "keys": 1}, "flash"),
        (92400, HOPPER, {"dtype": "float32"}, "efficient"),
    ],
)
def test_cudnn_comes_first_on_hopper_and_blackwell(monkeypatch, version, capability, more, expected):
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: version)
    more = {name: mask() if value == "mask" else value for name, value in more.items()}
    assert chosen_kernel(call(**more), capability) == expected


def test_what_is_switched_off_is_not_chosen():
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.EFFICIENT_ATTENTION):
        assert chosen_kernel(call(), AMPERE) == "efficient"
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert not chosen_kernel(call(), AMPERE)


@pytest.mark.parametrize("size", [64, 60])
@pytest.mark.parametrize("name", KERNELS)
def test_each_kernel_returns_the_result_of_attention(name, size):
    """The operators of torch have fake implementations, so shapes and dtypes are theirs."""
    asked = call(dtype="float16", size=size, attn_mask=None if name == "flash" else mask())
    with FakeTensorMode(allow_non_fake_inputs=True):
        found = KERNELS[name](_in_one_mode(asked))
    assert (tuple(found.shape), found.dtype, found.device.type) == ((2, 8, 16, size), torch.float16, "cuda")


def _in_one_mode(asked):
    """The call with tensors of the surrounding mode."""

    def made(tensor):
        return None if tensor is None else torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")

    return AttentionCall(
        query=made(asked.query), key=made(asked.key), value=made(asked.value), attn_mask=made(asked.attn_mask)
    )
