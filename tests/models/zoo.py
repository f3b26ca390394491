"""The zoo: tiny seeded checkpoints of many architectures and kinds, each built in a fraction of a second.

Sizes are counted by hand from the shapes below. They are the measured figures' reference, so nothing here counts them
with torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest

Family = Literal[
    "causal", "mixture", "recurrent", "hybrid", "vision-language", "encoder-decoder", "encoder", "checkpoint"
]
AUTO_CLASSES = {"vision-language": "AutoModelForImageTextToText", "encoder-decoder": "AutoModelForSeq2SeqLM"}
"""Auto classes of families; others have ``AutoModelForCausalLM``."""
Bytes = Callable[[int, int, int], int]
"""Cache bytes for a batch size, input tokens and output tokens. The last token is never fed back."""

# Multiples of what quantized kernels need: 64 columns, 32 rows.
H, F, V, L, P = 64, 64, 128, 2, 128  # hidden, feed-forward, vocabulary, layers, positions
HEADS, KV, D = 4, 2, 16  # attention heads, key-value heads, head dimension
EXPERTS, ACTIVE = 4, 2
WINDOW = 8
INNER, STATE, KERNEL = 2 * H, 8, 4  # of state space models
HALF, FULL = 2, 4  # bytes of a number in 16 and in 32 bit

EMBEDDING = V * H
ATTENTION = 2 * H * H + 2 * H * KV * D
ALL_HEADS = 4 * H * H
GATED, PLAIN, WIDE = 3 * H * F, 2 * H * F + F + H, 8 * H * H + 5 * H
NORMS = 2 * H
MIXTURE = EXPERTS * GATED + EXPERTS * H  # experts and router
ROPE = 2 * FULL * D // 2  # buffers inv_freq and original_inv_freq, always fp32
LLAMA = 2 * EMBEDDING + L * (ATTENTION + GATED + NORMS) + H
MIXTRAL = 2 * EMBEDDING + L * (ATTENTION + MIXTURE + NORMS) + H
GPT2 = EMBEDDING + P * H + L * (ALL_HEADS + 4 * H + WIDE + 2 * NORMS) + 2 * H
GPTJ = 2 * EMBEDDING + V + L * (ALL_HEADS + WIDE + NORMS) + 2 * H
OPT = EMBEDDING + L * (ALL_HEADS + 4 * H + PLAIN + 2 * NORMS) + 2 * H
BART = OPT + L * (2 * ALL_HEADS + 8 * H + PLAIN + 3 * NORMS) + 2 * H
T5 = EMBEDDING + L * (3 * ALL_HEADS + 2 * 2 * H * F + 5 * H) + 2 * 32 * HEADS + 2 * H
MAMBA = 2 * H * INNER + KERNEL * INNER + INNER + INNER * (4 + 2 * STATE) + 5 * INNER + INNER * (STATE + 1) + INNER * H
CONV2 = INNER + 2 * STATE
MAMBA2 = H * (INNER + CONV2 + 8) + (KERNEL + 1) * CONV2 + 3 * 8 + INNER + INNER * H
LATENT, ROTARY = 64, 32  # of multi-head latent attention
MLA = (
    H * LATENT
    + LATENT
    + LATENT * HEADS * (D + ROTARY)
    + H * (LATENT + ROTARY)
    + LATENT
    + LATENT * HEADS * 2 * D
    + H * H
)
DEEPSEEK = 2 * EMBEDDING + L * (MLA + NORMS) + GATED + MIXTURE + GATED + H


def keys_and_values(heads: int = KV, *, layers: int = L, sliding: int = 0, dim: int = D, state: int = 0) -> Bytes:
    """Bytes of a 16-bit cache: full and sliding layers, and states of so many bytes a sequence."""

    def count(batch: int, input_tokens: int, output_tokens: int) -> int:
        positions = input_tokens + output_tokens - 1
        kept = layers * positions + sliding * min(positions, WINDOW - 1)
        return batch * (2 * heads * dim * HALF * kept + state)

    return count


def encoder_decoder(batch: int, input_tokens: int, output_tokens: int) -> int:
    """Bytes of the decoder's own keys and values, whose first position is the start token, and of the encoder's."""
    return L * 2 * batch * HEADS * D * HALF * (input_tokens + output_tokens)


SSM = HALF * KERNEL * INNER + FULL * STATE * INNER
SSM2 = HALF * KERNEL * CONV2 + FULL * STATE * INNER
DELTA = HALF * KERNEL * 2 * H + FULL * HEADS * D * D


@dataclass(frozen=True)
class Entry:
    """A checkpoint: how it is built, and what is known of it by hand."""

    name: str
    family: Family
    builder: Callable[[Path], None]
    model_type: str
    parameters: int | None = None
    """Number of weights; ``None`` if it was not counted by hand."""
    buffers: int | None = None
    """Bytes of buffers."""
    cache: Bytes | None = None
    """Bytes of the cache; ``None`` if there is none, or it was not counted by hand."""
    refused: str = ""
    """A word of the refusal that is expected; empty if it can be measured."""

    def build(self, folder: Path) -> Path:
        """Write the checkpoint into a new folder; return it. The test is skipped if transformers has no such model."""
        if not self.is_known:
            pytest.skip(f"the installed transformers has no {self.model_type}")
        folder.mkdir(parents=True)
        self.builder(folder)
        return folder

    def load(self, folder: Path, dtype: Any) -> Any:
        """Load the model from ``folder / name``, where it is built first unless it is there."""
        import transformers

        from pytest_llmperf.models.quiet import quiet

        where = folder / self.name
        if not where.exists():
            self.build(where)
        head = getattr(transformers, AUTO_CLASSES.get(self.family, "AutoModelForCausalLM"))
        with quiet():
            return head.from_pretrained(where, dtype=dtype).eval()

    @property
    def weights(self) -> int | None:
        """Bytes in bf16; ``None`` if they were not counted by hand."""
        return None if self.parameters is None else HALF * self.parameters + (self.buffers or 0)

    @property
    def is_known(self) -> bool:
        """Whether the installed transformers has the architecture."""
        from transformers import CONFIG_MAPPING

        return self.model_type in CONFIG_MAPPING


_IDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
_LLAMA = {
    "hidden_size": H,
    "intermediate_size": F,
    "num_hidden_layers": L,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV,
    "vocab_size": V,
    "max_position_embeddings": P,
    **_IDS,
}
_WIDE_HEAD = {**_LLAMA, "head_dim": D}
_HALF_SLIDING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
_GPT = {"n_embd": H, "n_layer": L, "n_head": HEADS, "n_positions": P, "vocab_size": V, **_IDS}
_OPT = {
    "hidden_size": H,
    "word_embed_proj_dim": H,
    "ffn_dim": F,
    "num_hidden_layers": L,
    "num_attention_heads": HEADS,
    "vocab_size": V,
    "max_position_embeddings": P,
    **_IDS,
}
_LOCAL = {"num_local_experts": EXPERTS, "num_experts_per_tok": ACTIVE}
_NUMBERED = {"num_experts": EXPERTS, "num_experts_per_tok": ACTIVE, "moe_intermediate_size": F}
_ROUTED = {
    "n_routed_experts": EXPERTS,
    "num_experts_per_tok": ACTIVE,
    "moe_intermediate_size": F,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
_MLA = {
    "num_key_value_heads": HEADS,
    "n_shared_experts": 1,
    "q_lora_rank": LATENT,
    "kv_lora_rank": LATENT,
    "qk_nope_head_dim": D,
    "qk_rope_head_dim": ROTARY,
    "v_head_dim": D,
}
_STATES = {"hidden_size": H, "state_size": STATE, "num_hidden_layers": L, "vocab_size": V, **_IDS}
_MAMBA2 = {"mamba_n_groups": 1, "mamba_d_state": STATE, "mamba_chunk_size": 16, "mamba_d_head": 16}
_DELTA = {
    "linear_num_value_heads": HEADS,
    "linear_num_key_heads": KV,
    "linear_key_head_dim": D,
    "linear_value_head_dim": D,
    "layer_types": ["linear_attention", "full_attention"],
}
_BART = {
    "d_model": H,
    "encoder_layers": L,
    "decoder_layers": L,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": F,
    "decoder_ffn_dim": F,
    "vocab_size": V,
    "max_position_embeddings": P,
    "decoder_start_token_id": 2,
    **_IDS,
}
_T5 = {
    "d_model": H,
    "d_kv": D,
    "d_ff": F,
    "num_layers": L,
    "num_heads": HEADS,
    "vocab_size": V,
    "decoder_start_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
_EYE = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
_QWEN_EYE = {"depth": 1, "num_heads": 2, "patch_size": 4}
_MROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}}
_QWEN_IMAGE = {"image_token_id": 3, "video_token_id": 4, "vision_start_token_id": 5, "vision_end_token_id": 6}


def save(folder: Path, model_type: str, options: Mapping[str, Any], *, head: str = "AutoModelForCausalLM") -> None:
    """Save a seeded random bf16 model of the given auto class, and a tokenizer of its vocabulary."""
    import torch
    import transformers

    from pytest_llmperf.models.quiet import quiet
    from pytest_llmperf.models.tokenizer import printable_tokenizer

    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(model_type, **options)
        model = getattr(transformers, head).from_config(config, dtype=torch.bfloat16)
        _make_attentive(model)
        model.save_pretrained(folder)
        printable_tokenizer(V, P).save_pretrained(folder)


def _make_attentive(model: Any) -> None:
    """Draw the layers' matrices large, so that what comes next depends on the whole context.

    As the libraries initialize them, a model with a tied head repeats the last token, whatever came before.
    """
    import torch

    head = model.get_output_embeddings()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            module = model.get_submodule(name.rpartition(".")[0])
            is_matrix = type(module).__name__ in ("Linear", "Conv1D") and parameter.ndim == 2
            if module is not head and (is_matrix or (parameter.ndim == 3 and "expert" in name)):
                parameter.normal_(std=2 * H**-0.5)


def _entry(family: Family, model_type: str, options: Mapping[str, Any], *known: Any, **others: Any) -> Entry:
    """An entry with its parameters, buffers and cache; ``head`` and ``name`` as options."""
    head = others.pop("head", "AutoModelForCausalLM")
    name = others.pop("name", model_type)
    builder = partial(save, model_type=model_type, options=options, head=head)
    return Entry(name, family, builder, model_type, *known, **others)


def _causal() -> list[Entry]:
    known, sliding = partial(_entry, "causal"), keys_and_values(layers=1, sliding=1)
    mine, all_heads, one_head = keys_and_values(), keys_and_values(HEADS), keys_and_values(1)
    return [
        known("llama", _LLAMA, LLAMA, ROPE, mine),
        known("gpt2", _GPT, GPT2, 0, all_heads),
        known("gpt_neox", _LLAMA, OPT + EMBEDDING, ROPE // 4, all_heads),
        known("gptj", {**_GPT, "rotary_dim": 8}, GPTJ, L * P * 8 * FULL, all_heads),
        known("codegen", {**_GPT, "rotary_dim": 8}, GPTJ, L * P * 8 * FULL, all_heads),
        known("opt", _OPT, OPT + (P + 2) * H, 0, all_heads),
        known("biogpt", _LLAMA, OPT + (P + 2) * H, 0, all_heads),
        known("xglm", {"d_model": H, "ffn_dim": F, "num_layers": L, "attention_heads": HEADS, **_vocabulary()}, OPT,
              (P + 2) * H * HALF, all_heads),
        known("bloom", {"hidden_size": H, "n_layer": L, "n_head": HEADS, "vocab_size": V, **_IDS},
              GPT2 - P * H + 2 * H, 0, all_heads),
        known("falcon", {"hidden_size": H, "num_hidden_layers": L, "num_attention_heads": HEADS,
                         "ffn_hidden_size": F, **_vocabulary()},
              EMBEDDING + L * (H * (H + 2 * D) + H * H + 2 * H * F + 2 * H) + 2 * H, ROPE, one_head),
        known("mpt", {"d_model": H, "n_layers": L, "n_heads": HEADS, "max_seq_len": P, "vocab_size": V,
                      "use_cache": True, **_IDS}, EMBEDDING + L * (ALL_HEADS + 8 * H * H + NORMS) + H, 0, all_heads),
        known("gpt_bigcode", _GPT, GPT2 - L * (2 * H * (H - D) + 2 * (H - D)), P * P, one_head),
        known("gpt_neo", {"hidden_size": H, "num_layers": L, "num_heads": HEADS, "intermediate_size": F,
                          "attention_types": [[["global", "local"], 1]], "window_size": WINDOW, **_vocabulary()},
              OPT + P * H - L * 3 * H, L * P * P, all_heads),
        known("phi", _LLAMA, 2 * EMBEDDING + V + L * (ATTENTION + 3 * H + PLAIN + NORMS) + 2 * H, ROPE // 2, mine),
        known("phi3", _LLAMA, LLAMA, ROPE, mine),
        known("qwen2", _LLAMA, LLAMA + L * 2 * H, ROPE, mine),
        known("qwen3", _WIDE_HEAD, LLAMA + L * 2 * D, ROPE, mine),
        known("gemma", _WIDE_HEAD, LLAMA - EMBEDDING, ROPE + HALF, mine),
        known("gemma2", {**_WIDE_HEAD, "sliding_window": WINDOW}, LLAMA - EMBEDDING + L * NORMS, ROPE + HALF, sliding),
        known("gemma3_text", {**_WIDE_HEAD, **_HALF_SLIDING}, LLAMA - EMBEDDING + L * (NORMS + 2 * D),
              2 * ROPE + HALF, sliding),
        known("mistral", {**_LLAMA, "sliding_window": WINDOW}, LLAMA, ROPE, keys_and_values(layers=0, sliding=2)),
        known("stablelm", _LLAMA, LLAMA + L * NORMS + H, ROPE // 4, mine),
        known("starcoder2", {**_LLAMA, "sliding_window": None},
              EMBEDDING + L * (ATTENTION + 3 * H + PLAIN + 2 * NORMS) + 2 * H, ROPE, mine),
        known("olmo2", _LLAMA, LLAMA + L * (H + KV * D), ROPE, mine),
        known("cohere", _LLAMA, LLAMA - EMBEDDING - L * H, ROPE, mine),
        known("granite", _LLAMA, LLAMA, ROPE, mine),
        known("glm", _WIDE_HEAD, LLAMA + L * 2 * H, ROPE // 2, mine),
        known("smollm3", _LLAMA, LLAMA - EMBEDDING, ROPE, mine),
        known("exaone4", {**_LLAMA, **_HALF_SLIDING}, LLAMA + L * 2 * D, ROPE, sliding),
        known("openai-gpt", _GPT, GPT2 - 2 * H, L * P * P * HALF + P * 8),  # it has no cache at all
    ]  # fmt: skip


def _vocabulary() -> dict[str, int]:
    return {"vocab_size": V, "max_position_embeddings": P, **_IDS}


def _mixtures() -> list[Entry]:
    known, mine = partial(_entry, "mixture"), keys_and_values()
    latent = keys_and_values(1, dim=(LATENT + ROTARY) // 2)  # the compressed vector and the rotary key, not two heads
    return [
        known("mixtral", {**_LLAMA, **_LOCAL}, MIXTRAL, ROPE, mine),
        known("qwen2_moe", {**_LLAMA, **_NUMBERED, "shared_expert_intermediate_size": F},
              MIXTRAL + L * (GATED + H + 2 * H), ROPE, mine),
        known("qwen3_moe", {**_WIDE_HEAD, **_NUMBERED}, MIXTRAL + L * 2 * D, ROPE, mine),
        known("olmoe", {**_LLAMA, **_NUMBERED}, MIXTRAL + L * (H + KV * D), ROPE, mine),
        known("granitemoe", {**_LLAMA, **_LOCAL}, MIXTRAL, ROPE, mine),
        known("phimoe", {**_LLAMA, **_LOCAL}, MIXTRAL + L * NORMS + H, ROPE, mine),
        known("gpt_oss", {**_WIDE_HEAD, **_LOCAL, "sliding_window": WINDOW},
              MIXTRAL + L * (3 * H + HEADS + EXPERTS * (2 * F + H + 1)), ROPE, keys_and_values(layers=1, sliding=1)),
        known("llama4_text", {**_WIDE_HEAD, "num_local_experts": EXPERTS, "num_experts_per_tok": 1,
                              "intermediate_size_mlp": F}, MIXTRAL + L * GATED, ROPE, mine),
        known("deepseek_v2", {**_LLAMA, **_ROUTED, **_MLA}, DEEPSEEK, 2 * ROPE, latent),
        known("deepseek_v3", {**_LLAMA, **_ROUTED, **_MLA}, DEEPSEEK, 2 * ROPE + EXPERTS * FULL, latent),
        known("glm4_moe", {**_WIDE_HEAD, **_ROUTED}, LLAMA + MIXTURE, ROPE // 2 + EXPERTS * FULL, mine),
        known("jetmoe", {**_LLAMA, **_LOCAL, "kv_channels": D}, None, None, mine),
        known("minimax", {**_WIDE_HEAD, **_LOCAL, "block_size": 16}, None, None,
              keys_and_values(layers=1, state=HALF * HEADS * D * D)),
    ]  # fmt: skip


def _recurrent() -> list[Entry]:
    known, hybrid = partial(_entry, "recurrent"), partial(_entry, "hybrid")
    mamba = EMBEDDING + L * (MAMBA + H) + H
    two = {"mamba_n_heads": 8, "mamba_expand": 2, **_MAMBA2}
    return [
        known("mamba", _STATES, mamba, 0, keys_and_values(layers=0, state=L * SSM)),
        known("falcon_mamba", _STATES, mamba, L * HALF * (INNER + 2 * STATE), keys_and_values(layers=0, state=L * SSM)),
        known("mamba2", {**_STATES, "num_heads": 8, "head_dim": 16, "n_groups": 1, "chunk_size": 16},
              2 * EMBEDDING + L * (MAMBA2 + H) + H, 0, keys_and_values(layers=0, state=L * SSM2)),
        known("rwkv", {"hidden_size": H, "attention_hidden_size": H, "intermediate_size": F, "num_hidden_layers": L,
                       "vocab_size": V, "context_length": P, **_IDS}, None, None,
              keys_and_values(layers=0, state=L * H * (2 * HALF + 3 * FULL))),
        hybrid("recurrent_gemma", {"hidden_size": H, "intermediate_size": 2 * F, "num_hidden_layers": 3, "head_dim": D,
                                   "num_attention_heads": HEADS, "num_key_value_heads": 1, "lru_width": H,
                                   "attention_window_size": WINDOW, "vocab_size": V, **_IDS}, None, None,
               keys_and_values(1, layers=0, sliding=1, state=2 * (HALF * H * (KERNEL - 1) + FULL * H))),
        hybrid("bamba", {**_LLAMA, **two, "attn_layer_indices": [1]}, LLAMA - ATTENTION + MAMBA2, ROPE // 2,
               keys_and_values(layers=1, state=SSM2)),
        hybrid("jamba", {**_LLAMA, "attn_layer_offset": 1, "attn_layer_period": 2, "expert_layer_offset": 1,
                         "expert_layer_period": 2, "num_experts": EXPERTS, "num_experts_per_tok": ACTIVE,
                         "mamba_d_state": STATE, "mamba_dt_rank": 4, "use_mamba_kernels": False},
               LLAMA - ATTENTION - GATED + MAMBA + 4 + 2 * STATE + MIXTURE, 0, keys_and_values(layers=1, state=SSM)),
        hybrid("zamba2", {**_LLAMA, "num_key_value_heads": HEADS, "attention_hidden_size": 2 * H, "adapter_rank": 8,
                          "mamba_d_state": STATE, "mamba_headdim": 16, "mamba_ngroups": 1, "n_mamba_heads": 8,
                          "num_mem_blocks": 1, "hybrid_layer_ids": [1], "layers_block_type": ["mamba", "hybrid"],
                          "chunk_size": 16}, None, None,
               keys_and_values(HEADS, layers=1, dim=2 * D, state=2 * SSM2)),
        hybrid("falcon_h1", {**_WIDE_HEAD, **_MAMBA2, "mamba_d_ssm": H, "mamba_n_heads": 4}, None, None,
               keys_and_values(state=L * (HALF * KERNEL * (H + 2 * STATE) + FULL * H * STATE))),
        hybrid("granitemoehybrid", {**_LLAMA, **_LOCAL, **two, "layer_types": ["mamba", "attention"],
                                    "shared_intermediate_size": F},
               MIXTRAL - ATTENTION + MAMBA2 + L * GATED, 0, keys_and_values(layers=1, state=SSM2)),
        hybrid("nemotron_h", {**_WIDE_HEAD, "layers_block_type": ["mamba", "attention"], "mamba_num_heads": 8,
                              "mamba_head_dim": 16, "n_groups": 1, "ssm_state_size": STATE, "chunk_size": 16,
                              "use_mamba_kernels": False},
               2 * EMBEDDING + MAMBA2 + ATTENTION + L * H + H, 0, keys_and_values(layers=1, state=SSM2)),
        hybrid("lfm2", {**_LLAMA, "layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
               LLAMA - EMBEDDING - ATTENTION + 4 * H * H + 3 * H + 2 * D, ROPE,
               keys_and_values(layers=1, state=HALF * 3 * H)),
        hybrid("qwen3_next", {**_WIDE_HEAD, **_NUMBERED, **_DELTA, "shared_expert_intermediate_size": F}, None, None,
               keys_and_values(layers=1, state=DELTA)),
        hybrid("qwen3_5_text", {**_WIDE_HEAD, **_DELTA}, None, None, keys_and_values(layers=1, state=DELTA)),
    ]  # fmt: skip


def _vision_language() -> list[Entry]:
    known = partial(_entry, "vision-language", head="AutoModelForImageTextToText")
    mine, siglip = keys_and_values(), {"model_type": "siglip_vision_model", **_EYE}
    clip = {"model_type": "clip_vision_model", "projection_dim": 16, **_EYE}
    llama = {"model_type": "llama", **_LLAMA}
    qwen = {"text_config": {**_LLAMA, **_MROPE}, **_QWEN_IMAGE}
    fields = (None, None, mine)
    return [
        known("llava", {"text_config": llama, "vision_config": clip, "image_token_index": 3}, *fields),
        known("qwen2_vl", {**qwen, "vision_config": {**_QWEN_EYE, "embed_dim": 32, "hidden_size": H, "mlp_ratio": 1}},
              *fields),
        known("qwen2_5_vl", {**qwen, "vision_config": {**_QWEN_EYE, "hidden_size": 32, "out_hidden_size": H,
                                                       "intermediate_size": 32, "fullatt_block_indexes": [0]}},
              *fields),
        known("qwen3_vl", {**qwen, "text_config": {**_WIDE_HEAD, **_MROPE},
                           "vision_config": {**_QWEN_EYE, "hidden_size": 32, "out_hidden_size": H,
                                             "intermediate_size": 32, "num_position_embeddings": 16,
                                             "deepstack_visual_indexes": [0]}}, *fields),
        known("gemma3", {"text_config": {**_WIDE_HEAD, **_HALF_SLIDING}, "vision_config": siglip,
                         "mm_tokens_per_image": 4, "image_token_index": 3, "boi_token_index": 4,
                         "eoi_token_index": 5}, None, None, keys_and_values(layers=1, sliding=1)),
        known("paligemma", {"text_config": {"model_type": "gemma", **_WIDE_HEAD}, "vision_config": siglip,
                            "projection_dim": H, "image_token_index": 3}, *fields),
        known("idefics3", {"text_config": llama, "vision_config": _EYE, "image_token_id": 3}, *fields),
        known("smolvlm", {"text_config": llama, "vision_config": _EYE, "image_token_id": 3}, *fields),
        known("mistral3", {"text_config": {"model_type": "mistral", **_WIDE_HEAD, "sliding_window": None},
                           "vision_config": {"model_type": "pixtral", **_EYE}, "image_token_index": 3}, *fields),
        known("blip-2", {"text_config": {"model_type": "opt", **_OPT}, "vision_config": _EYE, "num_query_tokens": 2,
                         "qformer_config": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                                            "intermediate_size": 32, "encoder_hidden_size": 32, "vocab_size": V},
                         "image_token_index": 3}, refused="Blip2ForConditionalGeneration"),  # no text without an image
    ]  # fmt: skip


def _encoders() -> list[Entry]:
    known = partial(_entry, "encoder-decoder", head="AutoModelForSeq2SeqLM")
    both = encoder_decoder
    return [
        known("t5", _T5, T5, 0, both),
        known("mt5", _T5, T5 + 2 * L * H * F, 0, both),
        known("umt5", _T5, T5 + 2 * L * H * F + 2 * 32 * HEADS, 0, both),
        known("bart", _BART, BART + 2 * (P + 2) * H, 2 * 128, both),
        known("mbart", _BART, BART + 2 * (P + 2) * H + 4 * H, 2 * 128, both),
        known("pegasus", _BART, BART + 2 * P * H, 2 * 128, both),
        known("marian", _BART, BART + 2 * P * H - 4 * H, 2 * 128, both),
        known("blenderbot-small", _BART, BART + 2 * P * H, 2 * 128, both),
        known("m2m_100", _BART, BART, 2 * (P + 2) * H * HALF, both),
        _entry("encoder", "bert", _LLAMA, refused="BertLMHeadModel"),
        _entry("encoder", "roberta", _LLAMA, refused="RobertaForCausalLM"),
        _entry("encoder", "distilbert", {"dim": H, "n_layers": L, "n_heads": HEADS, "hidden_dim": F, "vocab_size": V},
               head="AutoModelForMaskedLM", refused="distilbert"),
    ]  # fmt: skip


GENERATION_CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "sampling": {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20},
    "repetition-penalty": {"repetition_penalty": 1.3},
    "no-repeat-ngram": {"no_repeat_ngram_size": 2},
    "suppress-tokens": {"suppress_tokens": [7, 8]},
    "min-new-tokens": {"min_new_tokens": 3},
    "no-cache": {"use_cache": False},
    "static-cache": {"cache_implementation": "static"},
    "quantized-cache": {"cache_implementation": "quantized", "cache_config": {"backend": "quanto", "nbits": 4}},
    "prefill-chunks": {"prefill_chunk_size": 4},
    "prompt-lookup": {"prompt_lookup_num_tokens": 3},
    "early-exit": {"assistant_early_exit": 1},
    "beams": {"num_beams": 2},
    "several-sequences": {"num_return_sequences": 2, "do_sample": True},
    "stop-strings": {"stop_strings": ["stop"]},
    "max-time": {"max_time": 1e-9},
    "guidance": {"guidance_scale": 1.5},
}
"""Files ``generation_config.json`` that change what ``generate`` does."""

_REFUSED_CONFIGS = {"beams": "num_beams", "several-sequences": "num_return_sequences", "stop-strings": "stop_strings"}

DECLARED: Mapping[str, Mapping[str, Any]] = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True},
    "compressed-tensors": {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True, "dynamic": False},
            }
        },
    },
    "torchao": {
        "quant_method": "torchao",
        "quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_version": 2, "_data": {}}},
    },
    "fp8": {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [32, 32]},
    "mxfp4": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
    "quanto": {"quant_method": "quanto", "weights": "int8"},
    "hqq": {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 64}}},
}
"""Stored quantizations that a ``config.json`` declares over bf16 weights: writing the real ones needs the packages."""

BITSANDBYTES: Mapping[str, Mapping[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "nf4-dq": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "int8": {"load_in_8bit": True, "llm_int8_threshold": 0.0},
    "int8-decomp": {"load_in_8bit": True},
}
"""Quantizations that bitsandbytes writes on a CPU."""


def save_llama(folder: Path, **changes: Any) -> None:
    """Save the entry ``llama``, with changes to its config."""
    save(folder, "llama", {**_LLAMA, **changes})


def edit_json(file: Path, **changes: Any) -> None:
    """Set keys of a JSON file, which may be absent."""
    found = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**found, **changes}, indent=2))


def save_generation(folder: Path, settings: Mapping[str, Any]) -> None:
    """Save a llama whose ``generation_config.json`` has settings."""
    save_llama(folder)
    edit_json(folder / "generation_config.json", **settings)


def save_declared(folder: Path, declared: Mapping[str, Any]) -> None:
    """Save a llama whose config declares a stored quantization."""
    save_llama(folder)
    edit_json(folder / "config.json", quantization_config=dict(declared))


def save_bitsandbytes(folder: Path, settings: Mapping[str, Any]) -> None:
    """Save a llama that bitsandbytes quantized."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from pytest_llmperf.models.quiet import quiet

    dense = folder / "dense"
    save_llama(dense)
    config = BitsAndBytesConfig(bnb_4bit_compute_dtype=torch.bfloat16, **settings)
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(dense, quantization_config=config, device_map={"": "cpu"})
        model.save_pretrained(folder)


def save_adapter(folder: Path) -> None:
    """Save a llama in ``base``, and a LoRA adapter of it as PEFT writes one."""
    import torch
    from safetensors.torch import save_file

    save_llama(folder / "base")
    generator, rank, weights = torch.Generator().manual_seed(0), 4, {}
    for layer in range(L):
        for name, rows in (("q_proj", H), ("v_proj", KV * D)):
            stem = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            weights[f"{stem}.lora_A.weight"] = torch.randn(rank, H, generator=generator)
            weights[f"{stem}.lora_B.weight"] = torch.randn(rows, rank, generator=generator)
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    edit_json(
        folder / "adapter_config.json",
        peft_type="LORA",
        task_type="CAUSAL_LM",
        base_model_name_or_path=str(folder / "base"),
        r=rank,
        lora_alpha=8,
        target_modules=["q_proj", "v_proj"],
        inference_mode=True,
    )


def save_pickled(folder: Path) -> None:
    """Save a llama with pickled weights alone."""
    import torch
    from safetensors.torch import load_file

    save_llama(folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def save_broken_tokenizer(folder: Path) -> None:
    """Save a llama whose ``tokenizer.json`` is JSON, but no tokenizer."""
    save_llama(folder)
    (folder / "tokenizer.json").write_text("{}")


def save_odd_tokenizer(folder: Path) -> None:
    """Save a llama whose tokenizer is of a class that does not exist."""
    save_llama(folder)
    edit_json(folder / "tokenizer_config.json", tokenizer_class="NobodysTokenizer")


_REMOTE = """
from transformers import LlamaConfig, LlamaForCausalLM


class OwnConfig(LlamaConfig):
    model_type = "own"


class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


def save_remote_code(folder: Path) -> None:
    """Save a llama of a model type that only the code in its folder knows."""
    save_llama(folder)
    (folder / "own.py").write_text(_REMOTE)
    auto = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    edit_json(folder / "config.json", model_type="own", architectures=["OwnModel"], auto_map=auto)


def _checkpoints() -> list[Entry]:
    mine = {"parameters": LLAMA, "buffers": ROPE, "cache": keys_and_values()}
    make = partial(Entry, family="checkpoint", model_type="llama")
    short = 16
    return [
        *(
            make(f"generation-{name}", builder=partial(save_generation, settings=settings), **mine,
                 refused=_REFUSED_CONFIGS.get(name, ""))
            for name, settings in GENERATION_CONFIGS.items()
        ),
        *(
            make(f"stored-{name}", builder=partial(save_bitsandbytes, settings=settings), cache=keys_and_values())
            for name, settings in BITSANDBYTES.items()
        ),
        *(
            make(f"declared-{name}", builder=partial(save_declared, declared=declared), refused=name)
            for name, declared in DECLARED.items()
        ),
        make("adapter", builder=save_adapter, cache=keys_and_values()),
        make("pickled", builder=save_pickled, refused="pickled"),
        make("broken-tokenizer", builder=save_broken_tokenizer, **mine),
        make("odd-tokenizer", builder=save_odd_tokenizer, **mine),
        make("remote-code", builder=save_remote_code, refused="trust"),
        make("short-llama", builder=partial(save_llama, max_position_embeddings=short), refused="positions"),
        _entry("checkpoint", "gpt2", {**_GPT, "n_positions": short}, name="short-gpt2", refused="positions"),
        _entry("checkpoint", "mpt", {"d_model": H, "n_layers": L, "n_heads": HEADS, "max_seq_len": short,
                                     "vocab_size": V, **_IDS}, name="short-mpt", refused="positions"),
    ]  # fmt: skip


ZOO: Mapping[str, Entry] = {
    entry.name: entry
    for entry in (*_causal(), *_mixtures(), *_recurrent(), *_vision_language(), *_encoders(), *_checkpoints())
}
"""Every entry by its name."""
