"""Models whose decode steps copy values to the host by design: the reasons, checked against transformers."""

from __future__ import annotations

import re
from importlib.metadata import version
from types import SimpleNamespace

import pytest
import torch
from packaging.version import Version
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, StaticCache

from pytest_llmperf.engines.executions import read_back
from pytest_llmperf.engines.executions.read_back import MODELS, STATIC_CACHE, rope_types, why_read_back

TRAINED = {"original_max_position_embeddings": 64}
ROPE = {
    "default": {},
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 2.0, **TRAINED},
    "longrope": {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8, **TRAINED},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **TRAINED},
}


def llama(kind):
    return LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=512,
        max_position_embeddings=256,
        rope_scaling={"rope_type": kind, **ROPE[kind]},
        **TRAINED,
    )


LAYERS = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
GPT = {"n_embd": 64, "n_layer": 2, "n_head": 4}
SMALL = {
    "biogpt": {**LAYERS, "num_attention_heads": 4},
    "ctrl": {**GPT, "dff": 128},
    "gpt2": GPT,
    "jetmoe": {**LAYERS, "num_key_value_heads": 2, "kv_channels": 16, "num_local_experts": 4},
    "mpt": {"d_model": 64, "n_layers": 2, "n_heads": 4},
    "opt": {**LAYERS, "ffn_dim": 128, "num_attention_heads": 4, "word_embed_proj_dim": 64},
    "qwen3": {**LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2},
}


@pytest.mark.parametrize("kind", ROPE)
def test_a_rope_reads_back_where_it_is_said_to(kind):
    config = llama(kind)
    assert reads_back(config) == bool(why_read_back(config))


@pytest.mark.skipif(Version(version("transformers")) < STATIC_CACHE, reason="every type of model reads back there")
@pytest.mark.parametrize("kind", SMALL)
def test_a_model_reads_back_where_it_is_said_to(kind):
    config = AutoConfig.for_model(kind, vocab_size=512, **SMALL[kind])
    assert reads_back(config) == bool(why_read_back(config))


def test_every_model_that_is_named_was_tried():
    assert set(SMALL) > MODELS


def reads_back(config):
    """Whether a step over a static cache reads a value, detected with fake tensors."""
    with FakeTensorMode(), torch.no_grad():
        model = AutoModelForCausalLM.from_config(config).eval()
        cache, token = StaticCache(config=config, max_cache_len=8), torch.zeros(2, 1, dtype=torch.long)
        try:
            model(token, past_key_values=cache)
            for layer in cache.layers:
                layer.cumulative_length = torch.empty((), dtype=torch.long)  # the mode knows the library's by its zero
            model(token, past_key_values=cache)
        except DataDependentOutputException:
            return True
    return False


@pytest.mark.parametrize(
    ("installed", "kind", "reason"),
    [
        (
            "4.57.6",
            "default",
            r"^transformers 4.57.6 copies the static cache's length to the host .*: expected 5.4 or later: pip",
        ),
        ("5.3.0", "llama3", r"^transformers 5.3.0 copies the static cache's length to the host"),
        ("5.4.0", "llama3", "^$"),
        (
            "5.20.2",
            "longrope",
            r"^RoPE of type 'longrope' copies values to the host .* transformers 5.20.2: expected 5.21 or later: pip",
        ),
        ("5.21.0", "longrope", "^$"),
        ("5.24.0", "dynamic", r"^RoPE of type 'dynamic' copies the sequence length to the host in each step$"),
    ],
)
def test_the_reason_names_the_version_or_the_rope(monkeypatch, installed, kind, reason):
    monkeypatch.setattr(read_back, "version", lambda package: installed)
    assert re.search(reason, why_read_back(llama(kind)))


@pytest.mark.parametrize(
    ("fields", "types"),
    [
        ({}, {"default"}),
        ({"rope_parameters": None, "rope_scaling": None}, {"default"}),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, {"dynamic"}),
        ({"rope_scaling": {"rope_type": "longrope", "type": "su"}}, {"longrope"}),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, {"yarn"}),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "dynamic"}, "sliding_attention": {"rope_theta": 1e4}}},
            {"dynamic", "default"},
        ),
    ],
    ids=["none", "null", "type", "both", "new", "of layers"],
)
def test_rope_is_read_in_old_and_new_configs(fields, types):
    """As one dictionary, or one for each layer type."""
    assert rope_types(SimpleNamespace(**fields)) == types
