"""Decode's share of the memory bandwidth."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from pytest_llmperf import ModelSpec
from pytest_llmperf.measure import peaks
from pytest_llmperf.measure.bandwidth import bandwidth_share
from pytest_llmperf.measure.bench import Bench
from pytest_llmperf.measure.cache_size import CacheSize
from pytest_llmperf.measure.generation import Plan
from pytest_llmperf.measure.peaks import spare_bandwidth
from pytest_llmperf.metrics import Figure
from pytest_llmperf.models.experts import has_experts
from pytest_llmperf.models.weights import weights_bytes


class TinyModel(torch.nn.Module):
    """An embedding and a head of 100 x 4 numbers of 4 bytes: 1,600 bytes each."""

    def __init__(self, *, tied, **config):
        super().__init__()
        self.embedding, self.head = torch.nn.Embedding(100, 4), torch.nn.Linear(4, 100, bias=False)
        if tied:
            self.head.weight = self.embedding.weight
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(**config), **config)

    def get_input_embeddings(self):
        return self.embedding

    def get_output_embeddings(self):
        return self.head


GROWING = CacheSize(190, 190)


def measured(*, tpots_ms=(1.0, 2.0, 9.0), cache=GROWING, several=False, figures=()):
    """Ten tokens in and ten out: the cache ends with 19 positions of 10 bytes, and a step reads 15 on average."""
    return SimpleNamespace(
        plan=SimpleNamespace(input_tokens=10, output_tokens=10),
        requests=[SimpleNamespace(tpot_ms=tpot, several_at_a_time=several) for tpot in tpots_ms],
        figures=figures,
        counts=SimpleNamespace(cache=cache),
    )


MIXTURE = "a mixture of experts reads only some of its weights per token"


@pytest.mark.parametrize("tied", [False, True])
def test_the_embedding_counts_only_as_a_head(tied):
    """1,600 bytes of head and 150 of cache in 2 ms are 875,000 bytes a second."""
    model = TinyModel(tied=tied)
    share = bandwidth_share(model, measured(), weights=weights_bytes(model), bandwidth=1_750_000.0)
    assert (share.metric, share.value, share.count) == ("bandwidth_share", pytest.approx(0.5), 3)


def test_recurrent_states_are_read_whole_in_each_step():
    """1,600 bytes of head, 300 of states and 150 of keys and values in 2 ms are 1,025,000 bytes a second."""
    model, found = TinyModel(tied=False), measured(cache=CacheSize(490, 190))
    share = bandwidth_share(model, found, weights=weights_bytes(model), bandwidth=1_025_000.0)
    assert share.value == pytest.approx(1.0)


@pytest.mark.parametrize(
    "name",
    ["num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", "expert_num", "num_moe_experts"],
)
def test_a_mixture_by_whatever_name(name):
    """One expert, or a number of experts per token, makes no mixture."""
    assert has_experts(TinyModel(tied=True, **{name: 4}))
    assert not has_experts(TinyModel(tied=True, **{name: 1}))
    assert not has_experts(TinyModel(tied=True, **{f"{name}_per_tok": 2}))


def test_a_mixture_by_its_modules():
    model = TinyModel(tied=True)
    assert not has_experts(model)
    model.mlp = torch.nn.ModuleDict({"experts": torch.nn.ModuleList([torch.nn.Linear(4, 4)])})
    assert has_experts(model)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"measured": measured(tpots_ms=(None,))}, "one output token has no decode: ask for two or more"),
        ({"bandwidth": None}, "the device's copy bandwidth could not be measured"),
        ({"measured": measured(several=True)}, "assisted decoding: a step makes several tokens"),
        (
            {"measured": measured(figures=[Figure("acceptance_share", 0.0)])},
            "assisted decoding: a step makes several tokens",
        ),
        ({"measured": measured(cache=None)}, "the request kept no KV cache"),
        ({"model": TinyModel(tied=True, num_local_experts=8)}, MIXTURE),
        (
            {"model": TinyModel(tied=True, is_encoder_decoder=True)},
            "a decode step does not read the weights of an encoder",
        ),
    ],
)
def test_a_share_that_cannot_be_told(changes, reason):
    """The value is None, with a reason."""
    given = {"model": TinyModel(tied=False), "measured": measured(), "weights": 3200, "bandwidth": 1.0} | changes
    share = bandwidth_share(given.pop("model"), given.pop("measured"), **given)
    assert (share.value, share.reason) == (None, reason)


def test_no_room_for_a_copy_is_no_error(monkeypatch):
    """The errors of torch have several classes; the copy is not retried."""

    def fail(_device):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(peaks, "copy_bandwidth", fail)
    spare_bandwidth.cache_clear()
    assert spare_bandwidth("cpu") is None
    monkeypatch.undo()
    assert spare_bandwidth("cpu") is None
    spare_bandwidth.cache_clear()


def test_the_copy_is_timed_once_a_process_before_the_first_model(model_cache, monkeypatch):
    """Its bandwidth is recorded in the conditions."""
    asked = []
    monkeypatch.setattr(peaks, "copy_bandwidth", lambda device: asked.append(device) or 1e12)
    spare_bandwidth.cache_clear()
    bench = Bench("cpu", frozenset())
    plan = Plan(batch_size=1, input_tokens=2, output_tokens=2, execution="loop", requests=1, warmup_cap=0)
    for quantization in ("fp32", "bf16"):
        loaded = bench.models.get(ModelSpec("synthetic:tiny", quantization))
        assert asked == ["cpu"]
        result = bench.measure(loaded, plan, test="test", run_id="run")
        assert result.observation.conditions["copy_bytes_per_s"] == 1e12
        assert 0 < result.value("bandwidth") < 1
        assert 0 < result.value("roofline_tpot") < result.value("tpot")
    spare_bandwidth.cache_clear()
