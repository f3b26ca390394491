"""Requests on a fake CPU: the same counts as on the CPU, and what cannot be counted has a reason."""

from __future__ import annotations

import pytest
import torch
from zoo import ZOO

from pytest_llmperf import ModelSpec
from pytest_llmperf.errors import ExecutionUnavailable, UsageError
from pytest_llmperf.hardware.clock import HostClock
from pytest_llmperf.hardware.fake_device import FakeDevice, with_values
from pytest_llmperf.measure.fake_generation import FakeMeasurement, count_generation
from pytest_llmperf.measure.generation import Measurement, Plan, measure_generation
from pytest_llmperf.measure.prompt import Prompt
from pytest_llmperf.models.load import load
from pytest_llmperf.models.shape_only import build_shape_only

FORMS = ["bf16", "fp16", "fp32", "nf4", "nf4-dq", "int8"]
KINDS = ["gpt_neox", "gemma2", "mixtral", "mamba", "deepseek_v3", "t5", "bart", "paligemma", "falcon"]


def plan(**changed):
    return Plan(
        **{"batch_size": 2, "input_tokens": 12, "output_tokens": 4, "execution": "loop", "requests": 1, "warmup_cap": 0}
        | changed
    )


def really(spec: ModelSpec, wanted: Plan) -> Measurement:
    loaded = load(spec, "cpu")
    return measure_generation(loaded.model, wanted, device="cpu", clock=HostClock())


def faked(spec: ModelSpec, wanted: Plan, *, change=lambda _model: None, tokenizer=(None, "none")) -> FakeMeasurement:
    device = FakeDevice("fake-cpu")
    with device.computing():
        with with_values():
            loaded = build_shape_only(spec, "cpu", device.computing)
        change(loaded.model)
        return count_generation(loaded.model, wanted, device, load_tokenizer=lambda: tokenizer)


def same(real: Measurement, fake: FakeMeasurement) -> None:
    """Everything that is counted, by operator and by dtype, of each phase and of its first and last step."""
    assert fake.reason == ""
    assert fake.work == real.counts.work
    assert list(fake.figures) == list(real.counts.figures)
    assert (fake.weights_bytes, fake.cache, fake.prompt_sha256, fake.plan.input_tokens) == (
        real.weights_bytes, real.counts.cache, real.prompt_sha256, real.plan.input_tokens,
    )  # fmt: skip


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("form", FORMS)
def test_a_llama_counts_as_on_the_cpu(model_cache, form, batch_size):
    """The layers are bitsandbytes' own, and run its own code."""
    spec, wanted = ModelSpec("synthetic:tiny", form), plan(batch_size=batch_size)
    same(really(spec, wanted), faked(spec, wanted))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_each_attention_counts_as_on_the_cpu(model_cache, attention):
    spec = ModelSpec("synthetic:tiny", "bf16", attention=attention)
    same(really(spec, plan()), faked(spec, plan()))


@pytest.mark.parametrize("name", KINDS)
def test_other_kinds_of_models_count_as_on_the_cpu(tmp_path, name):
    """Mixtures, recurrent states, latent attention, encoder-decoders; branches that read masks back take the same
    way.
    """
    spec = ModelSpec(str(ZOO[name].build(tmp_path / name)), "bf16")
    same(really(spec, plan()), faked(spec, plan()))


def test_quantized_experts_count_as_on_the_cpu(tmp_path):
    spec = ModelSpec(str(ZOO["mixtral"].build(tmp_path / "mixtral")), "nf4")
    same(really(spec, plan()), faked(spec, plan()))


def test_a_longer_request_grows_as_on_the_cpu(model_cache):
    spec, wanted = ModelSpec("synthetic:tiny", "bf16"), plan(output_tokens=20)
    same(really(spec, wanted), faked(spec, wanted))


def test_a_single_token_has_no_decode(model_cache):
    spec, wanted = ModelSpec("synthetic:tiny", "fp32"), plan(output_tokens=1)
    found = faked(spec, wanted)
    same(really(spec, wanted), found)
    assert set(found.peaks) == {"prefill"}


def test_peaks_hold_weights_cache_and_activations(model_cache):
    """Of the prefill: all weights, and for each of 2 x 12 tokens its cache and at least two hidden states."""
    found = faked(ModelSpec("synthetic:tiny", "fp32"), plan())
    hidden = 2 * 12 * 64 * 4
    kept = found.weights_bytes + 2 * 12 * 2 * 2 * 32 * 4
    assert found.peaks["prefill"] >= kept + 2 * hidden
    assert kept <= found.peaks["decode"] < found.peaks["prefill"]


@pytest.mark.parametrize("execution", ["generate", "compile", "graph", "lookup"])
def test_other_executions_need_values(model_cache, execution):
    message = f"^execution '{execution}' needs values, which a fake device does not have: use 'loop', its default$"
    with pytest.raises(ExecutionUnavailable, match=message):
        faked(ModelSpec("synthetic:tiny", "fp32"), plan(execution=execution))


def test_outliers_are_counted_in_values(model_cache):
    found = faked(ModelSpec("synthetic:tiny", "int8-decomp"), plan())
    assert found.reason.startswith("bitsandbytes/functional.py:")
    assert not found.figures


def test_a_hook_that_reads_back_is_named(model_cache):
    """Nothing of the request is counted: what came before the line would be too little."""

    def change(model):
        model.model.norm.register_forward_hook(lambda _module, _args, output: output.sum().item())

    found = faked(ModelSpec("synthetic:tiny", "fp32"), plan(), change=change)
    assert found.reason.startswith("measure/test_fake_generation.py:")
    assert "reads a value back" in found.reason
    assert (found.figures, found.work, found.cache) == ((), {}, None)


def test_a_compiled_part_is_named(model_cache):
    def change(model):
        model.model.layers[1].mlp.compile()

    assert "is compiled by torch.compile" in faked(ModelSpec("synthetic:tiny", "fp32"), plan(), change=change).reason


def test_a_leaked_tensor_shows_in_the_peak(model_cache):
    """Each forward keeps a mebibyte; the last one does so after most of its work."""
    kept = []

    def change(model):
        model.model.norm.register_forward_hook(lambda *_: kept.append(torch.empty(1 << 20, dtype=torch.uint8)))

    spec = ModelSpec("synthetic:tiny", "fp32")
    clean, leaking = faked(spec, plan()), faked(spec, plan(), change=change)
    for phase, forwards in {"decode": len(kept), "prefill": len(kept) - 3}.items():
        assert forwards - 1 < (leaking.peaks[phase] - clean.peaks[phase]) / 2**20 <= forwards


def test_a_prompt_of_words_needs_the_tokenizer(model_cache):
    prompt = Prompt(text="some words")
    with pytest.raises(UsageError, match="no tokenizer for a text prompt"):
        faked(ModelSpec("synthetic:tiny", "fp32"), plan(prompt=prompt))
    found = faked(ModelSpec("synthetic:tiny", "fp32"), plan(prompt=prompt), tokenizer=(Words(), ""))
    assert found.plan.input_tokens == 3


class Words:
    """A tokenizer of three tokens."""

    def __call__(self, _text):
        return {"input_ids": [5, 6, 7]}


def test_too_many_positions_are_refused(model_cache):
    with pytest.raises(UsageError, match="exceed the model's limit of 8192 positions"):
        faked(ModelSpec("synthetic:tiny", "fp32"), plan(input_tokens=8192))
