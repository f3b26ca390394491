"""Bytes of weights: each storage counts once, and quantization state is included."""

from __future__ import annotations

import pytest

from pytest_llmperf.models.load import load
from pytest_llmperf.models.spec import ModelSpec
from pytest_llmperf.models.weights import weights_bytes

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

# synthetic:tiny, in parameters.
EMBEDDING = HEAD = 512 * 64
NORMS = 5 * 64
LAYERS = 2
LINEAR = LAYERS * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 128 * 64)  # q and o, k and v, gate and up and down
LINEAR_ROWS = LAYERS * (2 * 64 + 2 * 32 + 2 * 128 + 64)
LINEAR_LAYERS = LAYERS * 7
BLOCK = 64
ROPE = 2 * 8 * 4  # the buffers inv_freq and original_inv_freq, fp32


def tiny_bytes(quantization: str) -> int:
    return weights_bytes(load(ModelSpec("synthetic:tiny", quantization), "cpu").model)


@pytest.mark.parametrize(("quantization", "size"), [("bf16", 2), ("fp16", 2), ("fp32", 4)])
def test_dense(quantization: str, size: int) -> None:
    """Parameters and rotary buffers."""
    assert tiny_bytes(quantization) - size * (EMBEDDING + HEAD + NORMS + LINEAR) in {ROPE // 2, ROPE}


def test_int8() -> None:
    """One byte per weight, and an fp32 scale per row."""
    extra = tiny_bytes("int8") - tiny_bytes("bf16")
    assert extra == LINEAR + 4 * LINEAR_ROWS - 2 * LINEAR


def test_nf4() -> None:
    """Half a byte per weight, an fp32 maximum per block, and a table of 16 per layer."""
    extra = tiny_bytes("nf4") - tiny_bytes("bf16")
    assert extra == LINEAR // 2 + 4 * LINEAR // BLOCK + LINEAR_LAYERS * 16 * 4 - 2 * LINEAR


def test_double_quantization_counts_the_nested_state() -> None:
    """The maxima take a byte each; the nested maxima, table and offset count too."""
    extra = tiny_bytes("nf4-dq") - tiny_bytes("nf4")
    nested = LINEAR_LAYERS * (1 * 4 + 256 * 4 + 4)  # at most 256 blocks a layer: one maximum
    assert extra == nested - 3 * LINEAR // BLOCK


def test_int8_state_is_found_wherever_it_is() -> None:
    """The first forward moves the scales from the weight to the module."""
    model = load(ModelSpec("synthetic:tiny", "int8"), "cpu").model
    before = weights_bytes(model)
    with torch.inference_mode():
        model(torch.arange(100, 108)[None])
    assert weights_bytes(model) == before


def test_tied_weights_count_once() -> None:
    """A head that shares the embedding adds nothing."""
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4, vocab_size=512
    )
    untied = transformers.LlamaForCausalLM(config)
    config.tie_word_embeddings = True
    tied = transformers.LlamaForCausalLM(config)
    assert weights_bytes(untied) - weights_bytes(tied) == 4 * HEAD


def test_views_count_once() -> None:
    """Two parameters may share one storage."""
    base = torch.zeros(1024)
    module = torch.nn.Module()
    module.a, module.b = torch.nn.Parameter(base[:512]), torch.nn.Parameter(base[512:])
    assert weights_bytes(module) in {4096, 8192}
