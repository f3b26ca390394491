"""Models that are built from their configs have the classes, shapes, dtypes and settings of loaded ones."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from zoo import ZOO

from pytest_llmperf import ModelSpec
from pytest_llmperf.errors import ModelError, Unavailable, UsageError
from pytest_llmperf.hardware.fake_device import FakeDevice, with_values
from pytest_llmperf.models.load import LoadedModel, load
from pytest_llmperf.models.shape_only import build_shape_only
from pytest_llmperf.models.structure import _lines
from pytest_llmperf.models.weights import weights_bytes
from pytest_llmperf.system.tensors import is_without_values

KINDS = ["llama", "gpt2", "gemma2", "mixtral", "deepseek_v3", "mamba", "recurrent_gemma", "t5", "bart", "llava", "rwkv"]
FORMS = ["bf16", "fp16", "fp32", "nf4", "nf4-dq", "int8", "int8-decomp"]
CLASSES = {"FakeTensor", "Parameter", "Tensor", "Params4bit", "Int8Params"}


def built(spec: ModelSpec, device: FakeDevice | None = None) -> LoadedModel:
    device = device or FakeDevice("fake-cpu")
    with device.computing(), with_values():
        return build_shape_only(spec, "cpu", device.computing)


def structure(model):
    """Its tensors by name, with class of the layer, shape and dtype; fake tensors have no classes of their own."""
    lines = (line for name, module in model.named_modules() for line in _lines(name, module))
    return sorted(" ".join(word for word in line.split(" ") if word not in CLASSES) for line in lines)


def trainable(model):
    """Which weights require gradients; bitsandbytes' own class says so of its 8-bit weights, too."""
    return {name: weight.requires_grad for name, weight in model.named_parameters() if weight.is_floating_point()}


def same(spec: ModelSpec) -> None:
    try:
        real = load(spec, "cpu")
    except ModelError as error:  # some layers cannot be quantized on a CPU
        with pytest.raises(ModelError, match=re.escape(str(error))):
            built(spec)
        return
    fake = built(spec)
    assert structure(fake.model) == structure(real.model)
    assert trainable(fake.model) == trainable(real.model)
    assert weights_bytes(fake.model) == weights_bytes(real.model)
    for name in ("name", "revision", "dtype", "attention", "device", "quantization", "settings"):
        assert getattr(fake, name) == getattr(real, name), name
    assert not any(module.training for module in fake.model.modules())


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_weights(form):
    same(ModelSpec("synthetic:tiny", form))


@pytest.mark.parametrize("form", ["fp16", "nf4"])
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_model(tmp_path, name, form):
    """Layers that are kept dense or in fp32, tied weights, experts, layers of class Conv1D."""
    same(ModelSpec(str(ZOO[name].build(tmp_path / name)), form))


def test_an_attention_is_taken_as_asked():
    assert built(ModelSpec("synthetic:tiny", attention="eager")).attention == "eager"


def config_only(folder: Path, **changed: object) -> Path:
    """A folder that has a llama's config and nothing else."""
    source = ZOO["llama"].build(folder / "whole")
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changed))
    return folder


def test_a_config_is_enough(tmp_path):
    """No weights are read, and no 300 GB of them are made."""
    folder = config_only(tmp_path, hidden_size=65536, intermediate_size=262144, vocab_size=10**6)
    found = built(ModelSpec(str(folder), "nf4"))
    assert weights_bytes(found.model) > 3 * 10**11
    assert all(map(is_without_values, found.model.parameters()))
    with pytest.raises(UsageError, match="has no weights"):
        load(ModelSpec(str(folder), "nf4"), "cpu")


def test_a_synthetic_model_needs_no_building(synthetic_cache):
    """8 billion weights would take minutes and 16 GB on disk."""
    found = built(ModelSpec("synthetic:8b", "bf16"))
    assert weights_bytes(found.model) > 16 * 10**9
    assert sum(file.stat().st_size for file in synthetic_cache.rglob("*8b*/*")) < 10**5


def test_layers_are_quantized_one_after_another(tmp_path):
    """The peak of loading holds no dense copy of all layers."""
    device = FakeDevice("fake-cpu")
    found = built(ModelSpec("synthetic:1b", "nf4"), device)
    weights = weights_bytes(found.model)
    assert device.live.alive == pytest.approx(weights, rel=1e-3)
    assert weights <= device.live.peak < 1.1 * weights


def test_the_codes_of_bitsandbytes_are_left_alone():
    from bitsandbytes.functional import name2qmap

    before = dict(name2qmap)
    built(ModelSpec("synthetic:tiny", "nf4-dq"))
    assert dict(name2qmap) == before


@pytest.mark.parametrize("form", ["stored", "torchao-int8wo"])
def test_other_forms_are_not_available(form):
    with pytest.raises(
        Unavailable, match=f"^quantization '{form}' is not available without a device: expected [^\n]*$"
    ):
        built(ModelSpec("synthetic:tiny", form))


def test_remote_code_needs_consent(tmp_path):
    folder = ZOO["remote-code"].build(tmp_path / "own")
    with pytest.raises(
        ModelError, match=r"^model '.*' needs code that comes with it, [^\n]*trust_remote_code=True[^\n]*$"
    ):
        built(ModelSpec(str(folder), "fp32"))
    assert built(ModelSpec(str(folder), "fp32", trust_remote_code=True)).attention == "sdpa"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "has no config.json: expected a folder with config.json$"),
        ("{", "could not be loaded as 'fp32'"),
        ('{"model_type": "nobodys"}', "could not be loaded as 'fp32'"),
    ],
)
def test_a_broken_folder_is_refused_in_a_line(tmp_path, text, message):
    if text:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises((UsageError, ModelError), match=message) as found:
        built(ModelSpec(str(tmp_path), "fp32"))
    assert "\n" not in str(found.value)


def test_an_adapter_is_not_available(tmp_path):
    pytest.importorskip("peft")
    with pytest.raises(Unavailable, match="is an adapter, which is not available without a device"):
        built(ModelSpec(str(ZOO["adapter"].build(tmp_path / "adapter")), "fp32"))


def test_a_quantized_checkpoint_is_what_it_is(tmp_path):
    folder = config_only(tmp_path, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(ModelError, match="is stored as 'gptq' and cannot be converted to 'bf16'"):
        built(ModelSpec(str(folder), "bf16"))


def test_a_model_of_values_may_follow(tiny):
    """What was built without values leaves nothing behind in the libraries."""
    built(ModelSpec("synthetic:tiny", "nf4-dq"))
    loaded = load(ModelSpec("synthetic:tiny", "nf4-dq"), "cpu")
    assert torch.isfinite(loaded.model(torch.arange(4)[None]).logits).all()
