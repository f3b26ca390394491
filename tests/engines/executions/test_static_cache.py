"""Which models decode over a static cache, as ``compile`` and ``graph`` need it."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import transformers
from zoo import ZOO

from pytest_llmperf import Compile
from pytest_llmperf.engines.conditions import measuring_conditions
from pytest_llmperf.engines.executions.execution import unnoticed
from pytest_llmperf.engines.executions.greedy_loop import step_positions
from pytest_llmperf.engines.executions.read_back import why_read_back
from pytest_llmperf.engines.executions.static_cache import (
    StaticRequest,
    cache_argument,
    next_token,
    static_cache,
    tokens_of_loop,
)
from pytest_llmperf.errors import ExecutionUnavailable
from pytest_llmperf.hardware.clock import HostClock

DECODED = (
    "llama", "gpt2", "gemma2", "mistral", "deepseek_v3", "jetmoe", "mamba", "falcon_mamba", "mamba2", "bamba", "jamba",
    "zamba2", "falcon_h1", "nemotron_h", "lfm2", "qwen3_next", "qwen3_5_text", "qwen2_vl", "paligemma",
)  # fmt: skip
NEITHER = "its forward takes neither past_key_values nor cache_params"
NOT_STATIC = {
    "openai-gpt": f"OpenAIGPTLMHeadModel over a static cache: {NEITHER}",
    "rwkv": f"RwkvForCausalLM over a static cache: {NEITHER}",
    "minimax": "MiniMaxForCausalLM over a static cache: MiniMax uses cache of its own",
    "t5": "T5ForConditionalGeneration over a static cache: an encoder-decoder has two caches",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("zoo")


def loaded(name, folder):
    if reason := why_read_back(transformers.LlamaConfig()):
        pytest.skip(reason)
    return ZOO[name].load(folder, torch.float32)


def prompt():
    return torch.arange(40, 64).reshape(2, 12)


def static_request(model):
    cache, name = static_cache(model, prompt(), 5), cache_argument(model)

    def step(token, position):
        return next_token(model, cache, token, position, name=name)

    return partial(StaticRequest(model, cache, prompt(), step, step_positions(model, prompt(), 5), name), 5, unnoticed)


@pytest.mark.parametrize("name", DECODED)
def test_the_tokens_are_those_of_the_loop(name, folder):
    """In the first request and in one that uses the same cache again."""
    model = loaded(name, folder)
    with measuring_conditions():
        expected, request = tokens_of_loop(model, prompt(), 5), static_request(model)
        assert torch.equal(request().tokens, expected)
        assert torch.equal(request().tokens, expected)


@pytest.mark.parametrize("name", ["mamba", "bamba"])
def test_a_compiled_step_of_a_recurrent_model(name, folder):
    """The compiled forward gets the cache by the name that it has, and the positions that it cannot count."""
    model = loaded(name, folder)
    with measuring_conditions(), Compile(backend="eager").open(model, prompt(), 5, HostClock()) as prepared:
        assert torch.equal(prepared.request(5, unnoticed).tokens, tokens_of_loop(model, prompt(), 5))
        figures = {figure.metric: figure.value for figure in prepared.figures()}
    assert figures["tokens_unlike_loop"] == 0


@pytest.mark.parametrize("name", NOT_STATIC)
def test_a_model_without_a_static_cache_is_unavailable(name, folder):
    """The reason is one line."""
    model = loaded(name, folder)
    with (
        pytest.raises(ExecutionUnavailable, match=f"^execution 'compile' cannot decode {NOT_STATIC[name]}") as caught,
        measuring_conditions(),
        Compile(backend="eager").open(model, prompt(), 5, HostClock()),
    ):
        pass
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(": use 'generate' or 'loop'")
