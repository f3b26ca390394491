"""What the weights of a model really are: label and share, by the tensors and not by the config."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.version import Version
from zoo import EXPERTS, GATED, HALF, HEADS, KV, ZOO, D, F, H, L

from pytest_llmperf.errors import ModelError
from pytest_llmperf.models.load import LoadedModel, load
from pytest_llmperf.models.quantization import QUANTIZATIONS
from pytest_llmperf.models.quantized_layers import quantize_experts
from pytest_llmperf.models.quantized_weights import (
    expert_stacks,
    linear_weights,
    quantization_label,
    quantized_share,
    verify,
)
from pytest_llmperf.models.spec import ModelSpec
from pytest_llmperf.models.weights import weights_bytes

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
since_5 = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5"), reason="transformers 4 quantizes other layers, or says why not"
)

ATTENTION = H * (HEADS + 2 * KV + HEADS) * D
MIXTRAL_LAYER = ATTENTION + EXPERTS * GATED
BLOCK, CODE, MAXIMUM = 64, 16 * 4, 4  # bitsandbytes: weights with one maximum, bytes of a table and of a maximum

Loader = Callable[..., LoadedModel]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loader:
    """Load an entry of the zoo in a quantization; it is built once."""
    zoo = tmp_path_factory.mktemp("zoo")

    def load_entry(name: str, quantization: str = "bf16") -> LoadedModel:
        if not ZOO[name].is_known:
            pytest.skip(f"transformers has no {name}")
        if not (zoo / name).exists():
            ZOO[name].build(zoo / name)
        return load(ModelSpec(str(zoo / name), quantization), "cpu")

    return load_entry


def stacked(found: LoadedModel) -> LoadedModel:
    """A loaded mixture; older versions of transformers have linear layers as experts, which are quantized as such."""
    if not any(weight.is_stack for weight in linear_weights(found.model)):
        pytest.skip("experts are linear layers in this version of transformers")
    return found


def refusal(loaded: Loader, name: str, quantization: str) -> str:
    with pytest.raises(ModelError) as caught:
        loaded(name, quantization)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def generated(model: object) -> list[list[int]]:
    prompt = torch.arange(40, 56).reshape(2, 8)
    options = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    with torch.inference_mode():
        return model.generate(prompt, **options)[:, 8:].tolist()  # type: ignore[attr-defined]


@pytest.mark.parametrize("quantization", ["bf16", "fp16", "fp32", "nf4", "nf4-dq", "int8", "int8-decomp"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_label_is_what_was_asked_for(loaded: Loader, name: str, quantization: str) -> None:
    """Linear layers, and those of GPT-2 that are no nn.Linear; using the model changes nothing."""
    found = loaded(name, quantization)
    assert (found.quantization, dict(found.settings)) == (quantization, {})
    generated(found.model)
    assert quantization_label(found.model) == quantization
    assert quantized_share(found.model, quantization) == 1


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("stored-nf4", "nf4"),
        ("stored-nf4-dq", "nf4-dq"),
        ("stored-fp4", "bitsandbytes-fp4"),
        ("stored-int8", "int8"),
        ("stored-int8-decomp", "int8-decomp"),
    ],
)
def test_a_stored_checkpoint_is_labelled_by_its_weights(loaded: Loader, name: str, label: str) -> None:
    found = loaded(name, "stored")
    assert (found.quantization, found.spec.quantization) == (label, "stored")
    assert quantization_label(found.model) == label


def test_stored_needs_a_quantized_checkpoint(loaded: Loader) -> None:
    assert "is not quantized, and 'stored' takes the quantization of a checkpoint" in refusal(loaded, "llama", "stored")


@since_5
@pytest.mark.parametrize("method", ["fp8", "mxfp4"])
def test_a_quantization_that_was_removed_while_loading_is_refused(loaded: Loader, method: str) -> None:
    """On a CPU, transformers converts such a checkpoint to bf16 and says nothing."""
    message = refusal(loaded, f"declared-{method}", "stored")
    assert f"is stored as {method!r}, and was converted to bf16 while loading (all " in message


@since_5
@pytest.mark.parametrize(
    ("method", "package"),
    [("gptq", "optimum"), ("awq", "gptqmodel"), ("compressed-tensors", "compressed-tensors"),
     ("quanto", "optimum-quanto"), ("hqq", "HQQ")],
)  # fmt: skip
def test_a_missing_package_is_named(loaded: Loader, method: str, package: str) -> None:
    for module in ("optimum", "gptqmodel", "compressed_tensors", "hqq"):
        if _is_installed(module):
            pytest.skip(f"{module} is installed")
    assert package in refusal(loaded, f"declared-{method}", "stored").partition("'stored': ")[2]


def _is_installed(module: str) -> bool:
    from importlib.util import find_spec

    return find_spec(module) is not None


@since_5
@pytest.mark.parametrize(("quantization", "dense"), [("nf4", "bf16"), ("int8", "fp16")])
def test_a_quantization_that_did_not_happen_is_refused(loaded: Loader, quantization: str, dense: str) -> None:
    """Falcon's linear layers are of a class of its own, which transformers does not replace."""
    linear = HALF * L * (H * (H + 2 * D) + H * H + 2 * H * F)
    assert refusal(loaded, "falcon", quantization).partition(": ")[2] == (
        f"{quantization!r} was not applied: 0 of {linear:,} bytes of linear weights are {quantization}, all are "
        f"{dense}; transformers quantizes layers of class nn.Linear, and these are FalconLinear; choose {dense} or "
        "another quantization"
    )


def test_the_share_of_a_mixture_is_said(loaded: Loader) -> None:
    """No library has int8 for experts: the attention's share of the linear weights is quantized."""
    found = stacked(loaded("mixtral", "int8"))
    assert found.quantization == "int8"
    assert found.settings["quantized_share"] == round(ATTENTION / MIXTRAL_LAYER, 3)
    assert quantization_label(found.model) == "mixed fp16 int8"


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "gpt_oss", "jetmoe", "llama4_text"])
@pytest.mark.parametrize("quantization", ["nf4", "nf4-dq"])
def test_experts_are_quantized_to_4_bit(loaded: Loader, name: str, quantization: str) -> None:
    pytest.importorskip("bitsandbytes.nn.parametrize")
    found = stacked(loaded(name, quantization))
    assert found.settings["experts"] == quantization
    assert "quantized_share" not in found.settings
    assert quantization_label(found.model) == quantization
    assert len(generated(found.model)[0]) == 4


def test_experts_in_4_bit_weigh_what_was_counted_by_hand(loaded: Loader) -> None:
    """Half a byte per weight, and for each layer or stack the maxima of its blocks and a table."""
    pytest.importorskip("bitsandbytes.nn.parametrize")
    dense, packed = (weights_bytes(stacked(loaded("mixtral", name)).model) for name in ("bf16", "nf4"))
    weights = L * MIXTRAL_LAYER
    assert dense - packed == 2 * weights - weights // 2 - weights // BLOCK * MAXIMUM - L * (4 + 2) * CODE


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "olmoe"])
def test_experts_in_4_bit_compute_with_their_rounded_weights(loaded: Loader, name: str) -> None:
    """The logits are exactly those of a dense model whose experts were rounded to nf4."""
    functional = pytest.importorskip("bitsandbytes.functional")
    pytest.importorskip("bitsandbytes.nn.parametrize")
    packed, rounded, ids = stacked(loaded(name)).model, loaded(name).model, torch.arange(40, 56).reshape(2, 8)
    with torch.inference_mode():
        dense = packed(ids).logits
        quantize_experts(packed, QUANTIZATIONS["nf4"])
        for module, parameter in expert_stacks(rounded):
            stack = getattr(module, parameter)
            stack.copy_(functional.dequantize_4bit(*functional.quantize_4bit(stack.data, quant_type="nf4")))
        assert torch.equal(packed(ids).logits, rounded(ids).logits)
        assert not torch.equal(packed(ids).logits, dense)


def test_the_routers_of_a_mixture_stay_dense(loaded: Loader) -> None:
    """Qwen2-MoE's gate of the shared expert has one row, which bitsandbytes cannot run everywhere."""
    model = loaded("qwen2_moe", "nf4").model
    gates = [module for name, module in model.named_modules() if name.endswith("shared_expert_gate")]
    assert [type(gate) for gate in gates] == [torch.nn.Linear] * L
    assert type(model.lm_head) is torch.nn.Linear


def test_how_experts_are_computed_is_part_of_the_workload(loaded: Loader) -> None:
    """The number of operators of some implementations depends on the routing."""
    found = loaded("mixtral")
    implementation = getattr(found.model.config, "_experts_implementation", None)
    assert dict(found.settings) == ({"experts_implementation": implementation} if implementation else {})


def test_layers_that_the_model_reads_stay_dense_and_are_said(loaded: Loader) -> None:
    """Mamba multiplies the weight of one projection itself, in newer versions of transformers."""
    found = loaded("mamba", "int8")
    assert 0.97 < found.settings["quantized_share"] < 1
    assert len(generated(found.model)[0]) == 4


@since_5
@pytest.mark.parametrize(
    ("name", "quantization", "expected"),
    [
        ("deepseek_v3", "int8", "kv_b_proj' has a four-dimensional input"),
        ("rwkv", "nf4", "rescales the weights of RwkvModel"),
    ],
)
def test_what_cannot_run_is_refused(loaded: Loader, name: str, quantization: str, expected: str) -> None:
    message = refusal(loaded, name, quantization)
    assert "cannot run quantized on 'cpu': " in message
    assert expected in message


@pytest.mark.parametrize("repacks", [True, False])
def test_odd_layers_are_refused_where_weights_are_repacked(
    loaded: Loader, monkeypatch: pytest.MonkeyPatch, *, repacks: bool
) -> None:
    """CPUs with AVX512-BF16 take multiples of 32 rows; other CPUs take any number."""
    functional = pytest.importorskip("bitsandbytes.functional")
    monkeypatch.setattr(functional, "has_avx512bf16", lambda: repacks, raising=False)
    if repacks:
        expected = "layer 'model.layers.0.mamba.in_proj' has 280 rows and 64 columns, and bitsandbytes needs multiples"
        assert expected in refusal(loaded, "bamba", "nf4")
    else:
        assert loaded("bamba", "nf4").quantization == "nf4"


@pytest.mark.parametrize("quantization", ["torchao-int8wo", "torchao-int8dq", "torchao-fp8wo"])
def test_torchao(loaded: Loader, quantization: str) -> None:
    """A byte per weight and a scale per row; torchao keeps a zero point per row of int8 too."""
    pytest.importorskip("torchao")
    found = loaded("llama", quantization)
    assert (found.quantization, found.dtype, dict(found.settings)) == (quantization, "bfloat16", {})
    rows = L * ((HEADS + 2 * KV) * D + H + 2 * F + H)
    weights, per_row = L * (ATTENTION + GATED), 4 if "fp8" in quantization else 4 + 1
    assert weights_bytes(loaded("llama").model) - weights_bytes(found.model) == weights - rows * per_row
    assert len(generated(found.model)[0]) == 4


@since_5
@pytest.mark.parametrize(("name", "expected"), [("gpt2", "these are Conv1D"), ("falcon", "is a FalconLinear"),
                                                ("rwkv", "rescales the weights")])  # fmt: skip
def test_what_torchao_cannot_do_is_refused(loaded: Loader, name: str, expected: str) -> None:
    pytest.importorskip("torchao")
    assert expected in refusal(loaded, name, "torchao-int8wo")


@since_5
def test_a_checkpoint_that_torchao_saved(loaded: Loader, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    loaded("llama", "torchao-int8wo").model.save_pretrained(tmp_path)
    found = load(ModelSpec(str(tmp_path), "stored"), "cpu")
    assert (found.quantization, dict(found.settings)) == ("torchao-int8wo", {})


def test_a_module_without_a_config_has_a_label() -> None:
    """Any module can be asked, such as a user's own."""
    module = torch.nn.Sequential(torch.nn.Linear(4, 4, dtype=torch.float16), torch.nn.ReLU())
    assert quantization_label(module) == "fp16"
    assert quantization_label(torch.nn.Embedding(4, 4)) == "fp32"
    module.append(torch.nn.Linear(4, 8))
    assert quantization_label(module) == "mixed fp32 fp16"
    assert verify(module, "fp32").settings == {"quantized_share": 0.667}
