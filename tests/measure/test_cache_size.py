"""Bytes of KV caches and recurrent states, counted by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from zoo import ZOO, L, keys_and_values

from pytest_llmperf.engines.conditions import measuring_conditions
from pytest_llmperf.engines.executions.execution import unnoticed
from pytest_llmperf.engines.executions.greedy_loop import GreedyLoop
from pytest_llmperf.hardware.clock import HostClock
from pytest_llmperf.measure.cache_size import CacheSize, NewStates, cache_size

INPUT, OUTPUT = 12, 5
POSITIONS = INPUT + OUTPUT - 1
COUNTED = [entry for entry in ZOO.values() if entry.cache and entry.family != "checkpoint"]
RECURRENT = ("mamba", "mamba2", "rwkv", "recurrent_gemma")
HYBRID = ("bamba", "jamba", "minimax", "lfm2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("zoo")


def measured(entry, folder):
    model = entry.load(folder, torch.bfloat16)
    prompt = torch.arange(40, 40 + 2 * INPUT).reshape(2, INPUT)
    with measuring_conditions(), GreedyLoop().open(model, prompt, OUTPUT, HostClock()) as prepared:
        states = NewStates(model)
        generated = prepared.request(OUTPUT, unnoticed)
    return cache_size(generated.cache, POSITIONS, states.find())


@pytest.mark.parametrize("entry", COUNTED, ids=lambda entry: entry.name)
def test_a_cache_has_the_bytes_counted_by_hand(entry, folder):
    """Keys and values, latent vectors, recurrent states, and an encoder-decoder's two caches."""
    assert measured(entry, folder).total_bytes == entry.cache(2, INPUT, OUTPUT)


@pytest.mark.parametrize("name", ["llama", "gemma2", "mistral", *RECURRENT, *HYBRID])
def test_what_grows_with_the_position(name, folder):
    """Neither recurrent states do, even if one has as many rows as there are positions, nor full sliding windows."""
    layers = {"llama": L, "gemma2": L // 2} | dict.fromkeys(HYBRID, 1)
    expected = keys_and_values(layers=layers.get(name, 0))(2, INPUT, OUTPUT)
    assert measured(ZOO[name], folder).growing_bytes == expected


@pytest.mark.parametrize("nothing", [None, object(), [], {"length": torch.tensor(3)}])
def test_no_cache_has_no_size(nothing):
    """The size is ``None``, not 0; numbers are not part of it."""
    assert cache_size(nothing, 5) is None


def test_memory_counts_once():
    """Views of the same numbers, and numbers that an expanded tensor repeats."""
    keys = torch.zeros(2, 3, 5, 4)
    cache = {"keys": keys, "first": keys[:1], "again": [keys.view(6, 5, 4)], "repeated": torch.zeros(1, 7).expand(9, 7)}
    assert cache_size(cache, 5) == CacheSize(4 * (2 * 3 * 5 * 4 + 7), 0)


def test_states_are_what_a_request_replaces():
    """Constants, parameters, buffers and integers are no states."""
    module = torch.nn.Linear(3, 3)
    module.inner = torch.nn.Identity()
    module.constant, module.inner.state = torch.ones(5), torch.ones(6)
    module.inner.register_buffer("buffer", torch.ones(7))
    states = NewStates(module)
    assert states.find() == []
    module.inner.state, module.inner.fresh, module.inner.length = torch.ones(8), torch.ones(9), torch.tensor([3])
    module.inner.buffer = torch.ones(10)
    assert sorted(tensor.numel() for tensor in states.find()) == [8, 9]
    assert cache_size(SimpleNamespace(), 5, states.find()) == CacheSize(4 * (8 + 9), 0)
