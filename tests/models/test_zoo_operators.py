"""Operators of a decode step of the zoo's architectures, counted by hand from their layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import pytest
from ticking_clock import TickingClock
from zoo import ZOO, L

from pytest_llmperf.measure.generation import Plan, measure_generation

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

# Linear layers of a block. A fused projection is one of them.
SPLIT, FUSED = 4, 2  # attention: query, key, value and output; or query-key-value and output
GATED, FUSED_GATED, PLAIN = 3, 2, 2  # feed-forward: gate, up and down; gate-up and down; up and down
ROUTER, HEAD = 1, 1
LATENT = 5  # multi-head latent attention: two projections each for query and key-value, and the output
CROSS = 2  # cross attention: query and output; keys and values of the encoder are cached
MAMBA, MAMBA2 = 4, 2  # in, x, dt and out; in and out
SHARED = GATED + 1  # an expert for all tokens, and its gate


KINDS = {
    "aten::mm": "linear",
    "aten::addmm": "linear",
    "aten::bmm": "batched",
    "aten::baddbmm": "batched",
    "aten::matmul": "batched",
    "aten::convolution": "convolution",
    "aten::_grouped_mm": "grouped",
    "aten::scaled_dot_product_attention": "attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu": "attention",
}
"""Kinds of matrix products, by operator."""


def products(linear: int, **others: int) -> Counter[str]:
    """Matrix products of a step, by kind."""
    return Counter(linear=linear, **others)


LLAMA = products(L * (SPLIT + GATED) + HEAD, attention=L)
OPT = products(L * (SPLIT + PLAIN) + HEAD, attention=L)
EAGER = {"batched": 2 * L}  # attention without a fused kernel: scores, and their product with the values
MIXTRAL = products(L * (SPLIT + ROUTER) + HEAD, attention=L, grouped=2 * L)
DEEPSEEK = products(L * LATENT + GATED + ROUTER + GATED + HEAD, attention=L, grouped=2)
BART = products(L * (SPLIT + CROSS + PLAIN) + HEAD, attention=2 * L)
MT5 = products(L * (SPLIT + CROSS + GATED) + HEAD, attention=2 * L)

PRODUCTS: Mapping[str, Counter[str]] = {
    **dict.fromkeys(
        ("llama", "qwen3", "gemma", "gemma3_text", "mistral", "olmo2", "cohere", "llava", "qwen2_vl"), LLAMA
    ),
    **dict.fromkeys(("opt", "biogpt", "phi", "starcoder2"), OPT),
    **dict.fromkeys(("mixtral", "qwen3_moe", "olmoe", "granitemoe", "phimoe"), MIXTRAL),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3"), DEEPSEEK),
    **dict.fromkeys(("t5", "bart", "mbart", "pegasus", "marian", "blenderbot-small", "m2m_100"), BART),
    **dict.fromkeys(("mt5", "umt5"), MT5),
    "gpt2": products(L * (FUSED + PLAIN) + HEAD, attention=L),
    "gpt_neox": products(L * (FUSED + PLAIN) + HEAD, attention=L),
    "gpt_bigcode": products(L * (FUSED + PLAIN) + HEAD, attention=L),
    "gptj": products(L * (SPLIT + PLAIN) + HEAD, **EAGER),
    "gpt_neo": products(L * (SPLIT + PLAIN) + HEAD, **EAGER),
    "codegen": products(L * (FUSED + PLAIN) + HEAD, **EAGER),
    "mpt": products(L * (FUSED + PLAIN) + HEAD, **EAGER),
    "xglm": products(L * (SPLIT + PLAIN) + HEAD, batched=2 * L),
    "bloom": products(L * (FUSED + PLAIN) + HEAD, batched=2 * L),
    "falcon": products(L * (FUSED + PLAIN) + HEAD, attention=L),
    "phi3": products(L * (FUSED + FUSED_GATED) + HEAD, attention=L),
    "glm": products(L * (SPLIT + FUSED_GATED) + HEAD, attention=L),
    "gemma2": products(L * (SPLIT + GATED) + HEAD, **EAGER),  # its scores are capped
    "qwen2_moe": products(L * (SPLIT + ROUTER + SHARED) + HEAD, attention=L, grouped=2 * L),
    "gpt_oss": products(L * (SPLIT + ROUTER) + HEAD, grouped=2 * L, **EAGER),  # its scores have sinks
    "llama4_text": products(L * (SPLIT + ROUTER + GATED) + HEAD, attention=L, batched=2 * L),
    "glm4_moe": products(L * SPLIT + GATED + ROUTER + GATED + HEAD, attention=L, grouped=2),
    # One layer of linear attention: query-key-value, gate and output; its state is read and written.
    "minimax": products(3 + SPLIT + L * ROUTER + HEAD, attention=1, grouped=2 * L, batched=2),
    "mamba": products(L * MAMBA + HEAD, convolution=L, batched=L),
    "falcon_mamba": products(L * MAMBA + HEAD, convolution=L, batched=L),
    "mamba2": products(L * MAMBA2 + HEAD, convolution=L, batched=L),
    "rwkv": products(L * (4 + 3) + HEAD),  # time mixing; channel mixing
    # Two recurrent layers with two gates each, and one of attention.
    "recurrent_gemma": products(2 * 3 + SPLIT + 3 * GATED + HEAD, batched=2 * 2, attention=1),
    "bamba": products(MAMBA2 + SPLIT + L * GATED + HEAD, convolution=1, batched=1, attention=1),
    "jamba": products(MAMBA + SPLIT + GATED + ROUTER + HEAD, convolution=1, batched=1, attention=1, grouped=2),
    # The shared block: attention, gate-up and down, a low-rank adapter of two, and a projection to its layer.
    "zamba2": products(L * MAMBA2 + SPLIT + FUSED_GATED + 2 + 1 + HEAD, convolution=L, batched=L, attention=1),
    "falcon_h1": products(L * (MAMBA2 + SPLIT + GATED) + HEAD, convolution=L, batched=L, attention=L),
    "granitemoehybrid": products(
        MAMBA2 + SPLIT + L * (ROUTER + FUSED_GATED) + HEAD, convolution=1, batched=1, attention=1, grouped=2 * L
    ),
    "nemotron_h": products(MAMBA2 + SPLIT + HEAD, convolution=1, batched=1, attention=1),
    "lfm2": products(2 + SPLIT + L * GATED + HEAD, convolution=1, attention=1),
    "qwen3_next": products(3 + SPLIT + L * (ROUTER + SHARED) + HEAD, convolution=1, attention=1, grouped=2 * L),
    "qwen3_5_text": products(5 + SPLIT + L * GATED + HEAD, convolution=1, attention=1),
}  # fmt: skip
"""Matrix products of a decode step by architecture."""


def step(name: str, folder: Path, **config: int) -> Counter[str]:
    """Operators of one decode step, as the plugin counts them."""
    model = ZOO[name].load(folder, torch.float32)
    plan = Plan(batch_size=2, input_tokens=12, output_tokens=5, execution="loop", requests=1, warmup_cap=0)
    work = measure_generation(model, plan, device="cpu", clock=TickingClock()).counts.work["decode"]
    return Counter({operator: int(calls) for operator, calls in work.operators.items()})


@pytest.mark.parametrize("name", sorted(PRODUCTS))
def test_matrix_products_are_as_counted_by_hand(name: str, tmp_path: Path) -> None:
    found: Counter[str] = Counter()
    for operator, calls in step(name, tmp_path).items():
        found[KINDS.get(operator, "others")] += calls
    assert found - Counter(others=found["others"]) == PRODUCTS[name]


def test_every_family_that_decodes_is_counted() -> None:
    families = {entry.family for entry in ZOO.values()} - {"checkpoint", "encoder"}
    assert {ZOO[name].family for name in PRODUCTS} == families


def times(count: int, **operators: int) -> Counter[str]:
    return Counter({f"aten::{name}": count * calls for name, calls in operators.items()})


# Every operator, read in the code of transformers 5.23, by the parts of a model.
KERNEL = "_scaled_dot_product_flash_attention_for_cpu"
RMS_NORM = {"to": 2, "pow": 1, "mean": 1, "add": 1, "rsqrt": 1, "mul": 2}
# Heads are split and joined, and the cache is appended to. One token needs no mask.
ATTENTION = {"view": 3, "transpose": 4, "cat": 2, KERNEL: 1, "reshape": 2}
ROTATED = {"unsqueeze": 2, "mul": 4, "add": 2, "slice": 4, "neg": 2, "cat": 2}  # x cos + rotated(x) sin, twice
ANGLES = {"unsqueeze": 1, "_to_copy": 1, "to": 3, "mul": 3, "cat": 1, "cos": 1, "sin": 1}
SWIGLU = {"silu": 1, "mul": 1}
RESIDUALS = {"add": 2}
GREEDY = {"slice": 1, "alias": 1, "argmax": 1}  # the last position's logits, and the most likely token
# The router's softmax, the best experts and their shares. Then the tokens are sorted by expert, multiplied, and summed.
ROUTING = {"_softmax": 1, "topk": 1, "sum": 1, "div_": 1, "to": 2, "_to_copy": 1}
SORTED = {"view": 2, "reshape": 4, "sort": 1, "floor_divide": 1, "histc": 1, "cumsum": 1, "index": 3, "to": 1,
          "arange": 1, "empty_like": 1, "index_put_": 1}  # fmt: skip
EXPERTS_OF_A_LAYER = {"_grouped_mm": 2, "transpose": 2, "chunk": 1, "silu": 1, "mul": 2, "unsqueeze": 1, "sum": 1,
                      "to": 1}  # fmt: skip
GELU = {"mul": 4, "pow": 1, "add": 2, "tanh": 1}
# Each projection flattens its input and restores the shape.
GPT2_LAYER = {"native_layer_norm": 2, "addmm": FUSED + PLAIN, "split": 1, "dropout": 2}
FLATTENED = {"view": 2 * (FUSED + PLAIN)}
GPT2_AROUND = {
    "embedding": 2, "add": 1, "dropout": 1, "view": 2, "native_layer_norm": 1, "mm": HEAD,
    # Whether any position of the mask is padding is read by the host.
    "lift_fresh": 1, "index": 1, "eq": 1, "any": 1, "_local_scalar_dense": 1, "to": 1,
}  # fmt: skip


def sum_of(*parts: Counter[str]) -> Counter[str]:
    return sum(parts, Counter[str]())


LLAMA_LAYERS = sum_of(
    times(2 * L, **RMS_NORM), times(L, **ATTENTION), times(L, **ROTATED), times(L, **RESIDUALS), times(L, mm=SPLIT)
)
LLAMA_AROUND = sum_of(times(1, **RMS_NORM), times(1, **ANGLES), times(1, **GREEDY), times(1, embedding=1, mm=HEAD))
STEPS = {
    "llama": sum_of(LLAMA_LAYERS, times(L, **SWIGLU), times(L, mm=GATED), LLAMA_AROUND),
    "llava": sum_of(LLAMA_LAYERS, times(L, **SWIGLU), times(L, mm=GATED), LLAMA_AROUND),
    "mixtral": sum_of(
        LLAMA_LAYERS, times(L, mm=ROUTER), times(L, **ROUTING), times(L, **SORTED), times(L, **EXPERTS_OF_A_LAYER),
        LLAMA_AROUND,
    ),
    "gpt2": sum_of(
        times(L, **GPT2_LAYER), times(L, **FLATTENED), times(L, **ATTENTION), times(L, **GELU), times(L, **RESIDUALS),
        times(1, **GPT2_AROUND), times(1, **GREEDY),
    ),
}  # fmt: skip
"""All operators of a decode step by architecture."""


@pytest.mark.skipif(version("transformers") != "5.23.0", reason="counted by hand in the code of transformers 5.23")
@pytest.mark.parametrize("name", sorted(STEPS))
def test_all_operators_are_as_counted_by_hand(name: str, tmp_path: Path) -> None:
    assert step(name, tmp_path) == STEPS[name]
