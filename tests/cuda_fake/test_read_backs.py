"""Models whose decode step waits for the device, and where: the wait is part of TPOT, and prevents CUDA graphs."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch
from fake_device import DEVICE, ReadBackError, Watched, fake_device, new_model, prompt, steps_of_graph, steps_of_loop

from pytest_llmperf.engines.executions.static_cache import next_token, prefill, static_cache
from pytest_llmperf.errors import ExecutionUnavailable
from pytest_llmperf.models.synthetic import ARCHITECTURES

pytestmark = pytest.mark.skipif(torch.version.cuda is None, reason="this torch is no CUDA build: nox -s cuda-fake")

SHAPE = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 512, "max_position_embeddings": 256, "pad_token_id": 0,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8,
    "original_max_position_embeddings": 64,
}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
FREE = {
    "llama": ("llama", SHAPE),
    "llama3-rope": ("llama", SHAPE | {"rope_parameters": LLAMA3}),
    "qwen2": ("qwen2", SHAPE),
    "qwen3": ("qwen3", SHAPE | {"head_dim": 16}),
    "mistral": ("mistral", SHAPE | {"sliding_window": None}),
    "phi3": ("phi3", SHAPE),
    "longrope": ("phi3", SHAPE | {"original_max_position_embeddings": 64, "rope_parameters": LONGROPE}),
    "gpt2": ("gpt2", {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 512, "n_positions": 256}),
    "gpt_neox": ("gpt_neox", {name: SHAPE[name] for name in SHAPE if name != "num_key_value_heads"}),
}
SLIDING = {
    "mistral": ("mistral", SHAPE | {"sliding_window": 4}),
    "gemma2": ("gemma2", SHAPE | {"head_dim": 16, "sliding_window": 4}),
}


def config(kind, shape):
    from transformers import AutoConfig

    return AutoConfig.for_model(kind, **shape)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", FREE)
def test_nothing_waits(name, attention, monkeypatch):
    """This covers a request of ``loop``, the prefill of a static cache, and the steps that ``graph`` captures."""
    with fake_device():
        model = new_model(config(*FREE[name]), attention)
        assert [step.waits for step in steps_of_loop(model)] == [[], [], []]
        assert [step.waits for step in steps_of_graph(model, monkeypatch)] == [[], [], []]
        cache = static_cache(model, prompt(), 3)
        next_token(model, cache, torch.zeros(3, 1, dtype=torch.long, device=DEVICE))  # allocates it
        with Watched() as watched:
            prefill(model, cache, prompt())
        assert watched.steps[0].waits == []


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_nothing_waits_in_a_synthetic_model(name):
    """The model has its full size: tensors without values take no memory."""
    with fake_device():
        model = new_model(config("llama", asdict(ARCHITECTURES[name])))
        assert [step.waits for step in steps_of_loop(model)] == [[], [], []]


def test_dynamic_rope_reads_the_length_back():
    """Prefill and each step check whether the sequence is longer than the frequencies."""
    with (
        fake_device(),
        pytest.raises(ReadBackError, match=r"_local_scalar_dense.*modeling_rope_utils\.py:\d+ `if seq_len"),
    ):
        steps_of_loop(new_model(config("llama", SHAPE | {"rope_parameters": DYNAMIC})))


@pytest.mark.parametrize("name", SLIDING)
def test_a_sliding_window_waits_in_prefill_and_counts_on_the_host(name, monkeypatch):
    """``loop`` copies the window's size to the device once per layer; ``graph`` is refused."""
    with fake_device():
        model = new_model(config(*SLIDING[name]), "eager")
        first, *steps = steps_of_loop(model)
        assert first.waits
        assert all("cache_utils.py" in wait and "_sliding_window_tensor.to" in wait for wait in first.waits)
        assert [step.waits for step in steps] == [[], []]
        with pytest.raises(ExecutionUnavailable, match="cache layers of type StaticSlidingWindowLayer count positions"):
            steps_of_graph(model, monkeypatch)


SLOWED = {
    "item": lambda hidden: hidden.sum().item(),
    "branch": lambda hidden: hidden.sum() > 0 and None,
    "nonzero": lambda hidden: hidden.nonzero(),
    "to host": lambda hidden: hidden.cpu(),
    "from host": lambda hidden: torch.ones(4).to(hidden.device),
    "a constant": lambda hidden: torch.tensor(4, device=hidden.device).item(),
}


@pytest.mark.parametrize("how", SLOWED)
def test_a_hook_that_waits_is_seen(how, monkeypatch):
    """The wait and its line are found in a step of ``loop`` and of ``graph``."""

    def hook(_module, _args, output):
        SLOWED[how](output)

    with fake_device():
        model = new_model(config("llama", SHAPE))
        model.model.norm.register_forward_hook(hook)
        for steps in (lambda: steps_of_loop(model), lambda: steps_of_graph(model, monkeypatch)):
            assert "test_read_backs.py" in seen(steps)
            assert f'"{how}": lambda hidden' in seen(steps)


def seen(steps):
    """Return the first wait."""
    try:
        return next((wait for step in steps() for wait in step.waits), "none")
    except ReadBackError as error:
        return str(error)
