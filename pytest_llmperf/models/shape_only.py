"""Build a model from its config alone: classes, shapes and dtypes of the loaded model, and no weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from pytest_llmperf.errors import Unavailable
from pytest_llmperf.models.adapter import find_adapter
from pytest_llmperf.models.attention import attention_of, check_loaded
from pytest_llmperf.models.load import (
    LoadedModel,
    check_packages,
    dtype_of,
    dtype_options,
    hub_options,
    one_line_errors,
    verified_form,
)
from pytest_llmperf.models.model_class import auto_class
from pytest_llmperf.models.quantization import QUANTIZATIONS, STORED, check_available
from pytest_llmperf.models.quantized_layers import check_layers, quantize_experts
from pytest_llmperf.models.quiet import quiet
from pytest_llmperf.models.source import check_source, identify, locate, named_model
from pytest_llmperf.models.spec import ModelSpec
from pytest_llmperf.models.structure import structure_digest

if TYPE_CHECKING:
    import torch

Computing = Callable[[], AbstractContextManager[object]]

NO_TOKENIZER = "it was built from its config alone"


def check_shape_only(spec: ModelSpec, device: str) -> None:
    """Check everything that can be checked before building a model from its config.

    Args:
        spec: The model.
        device: The torch device that its tensors claim to be on.

    Raises:
        UsageError, MissingDependency: As ``load`` does, but weights may be missing.
    """
    check_source(spec, weights=False)
    check_packages(spec)
    if QUANTIZATIONS[spec.quantization].needs_bitsandbytes:
        check_available(QUANTIZATIONS[spec.quantization], device)


def build_shape_only(spec: ModelSpec, device: str, computing: Computing) -> LoadedModel:
    """Build a model of a spec on a device, with the classes and forms of weights that ``load`` would give it.

    Args:
        spec: The model.
        device: The torch device that its tensors claim to be on.
        computing: Makes a block in which new tensors have neither values nor memory.

    Raises:
        Unavailable: The weights' form depends on the checkpoint, or the library cannot quantize without values.
        UsageError, MissingDependency, ModelError: As ``load`` does.
    """
    check_shape_only(spec, device)
    if spec.quantization == STORED or QUANTIZATIONS[spec.quantization].torchao:
        raise Unavailable(
            f"quantization {spec.quantization!r} is not available without a device: expected a dense one or one of "
            "bitsandbytes, such as bf16, nf4 or int8"
        )
    with one_line_errors(spec), quiet():
        source = locate(spec, weights=False)
        if find_adapter(spec, source):
            raise Unavailable(f"model {spec.model!r} is an adapter, which is not available without a device")
        return _build(spec, source, device, computing)


def _build(spec: ModelSpec, source: str, device: str, computing: Computing) -> LoadedModel:
    import torch
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(source, **hub_options(spec))
    kind = auto_class(config, named_model(spec), trusts_code=spec.trust_remote_code)
    options = dtype_options(spec, source, config, device)
    with torch.device("meta"):
        model = kind.from_config(
            config,
            dtype=options["dtype"],
            attn_implementation=spec.attention,
            trust_remote_code=spec.trust_remote_code,
        )
    if quantization := options.get("quantization_config"):
        _replace_layers(model, quantization, device)
    with computing(), _own_code(device):
        _materialize(model, options["dtype"], device)
        quantize_experts(model, QUANTIZATIONS[spec.quantization])
    check_loaded(spec, model)
    check_layers(model, device, name=named_model(spec))
    name, revision = identify(spec, model.config)
    verified = verified_form(spec, model)
    return LoadedModel(
        spec=spec,
        model=model.eval(),
        tokenizer=None,
        tokenizer_error=NO_TOKENIZER,
        name=name,
        revision=revision,
        dtype=dtype_of(model),
        attention=attention_of(model),
        device=device,
        quantization=verified.label,
        settings=verified.settings,
        structure=structure_digest(model),
    )


def _replace_layers(model: Any, quantization: Any, device: str) -> None:
    """Replace linear layers by those of the quantizing library, as transformers does before it loads weights."""
    from transformers.quantizers.auto import AutoHfQuantizer

    quantizer = AutoHfQuantizer.from_config(quantization, pre_quantized=False)
    kept = getattr(model, "_keep_in_fp32_modules", None)
    quantizer.preprocess_model(model=model, device_map={"": device}, keep_in_fp32_modules=kept or [])
    model.config.quantization_config = quantization


def _materialize(model: Any, dtype: torch.dtype, device: str) -> None:
    """Create a model's tensors on a device, layer by layer, and quantize each layer at once, as loading does.

    Tensors that modules share stay shared.
    """
    import torch

    made: dict[torch.Tensor, torch.Tensor] = {}
    in_fp32 = _kept_in_fp32(model, dtype)

    def on_device(name: str, tensor: torch.Tensor, module: Any) -> torch.Tensor:
        kept = dtype if type(module).__name__ in _QUANTIZE else tensor.dtype  # its bias was made in another dtype
        kept = torch.float32 if tensor.is_floating_point() and in_fp32(name) else kept
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=kept, device=device)

    for path, module in model.named_modules():
        for owned, form in ((module._buffers, _unchanged), (module._parameters, _parameter)):  # noqa: SLF001  # without those of its parts
            for name, tensor in [(name, tensor) for name, tensor in owned.items() if tensor is not None]:
                if tensor not in made:
                    quantize = _QUANTIZE.get(type(module).__name__) if name == "weight" else None
                    made[tensor] = (quantize or form)(module, on_device(f"{path}.{name}", tensor, module))
                owned[name] = made[tensor]


def _unchanged(_module: Any, tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _parameter(_module: Any, dense: torch.Tensor) -> torch.Tensor:
    """A parameter as loading leaves it: torch composes some products otherwise if it requires no gradients."""
    import torch

    return torch.nn.Parameter(dense, requires_grad=dense.is_floating_point())


def _kept_in_fp32(model: Any, dtype: torch.dtype) -> Callable[[str], bool]:
    """Whether transformers loads a tensor of a name in fp32, whatever the model's dtype is."""
    import torch

    kept: set[str] = set()
    if dtype in (torch.float16, torch.bfloat16):
        kept.update(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    if dtype == torch.float16:
        kept.update(getattr(model, "_keep_in_fp32_modules", None) or ())
    return lambda name: any(part in kept for part in name.split("."))


def _in_4bit(layer: Any, dense: torch.Tensor) -> torch.Tensor:
    """Quantize a weight as ``Params4bit`` does; a fake tensor cannot be of that class."""
    from bitsandbytes.functional import quantize_4bit

    form = layer.weight
    packed, state = quantize_4bit(
        dense,
        blocksize=form.blocksize,
        compress_statistics=form.compress_statistics,
        quant_type=form.quant_type,
        quant_storage=form.quant_storage,
    )
    layer.quant_state = state
    packed.quant_state, packed.bnb_quantized, packed.quant_type = state, True, form.quant_type
    quantized: torch.Tensor = packed
    return quantized


def _in_int8(_layer: Any, dense: torch.Tensor) -> torch.Tensor:
    """Quantize a weight as ``Int8Params`` does; its first forward moves both parts to the layer's state."""
    import torch
    from bitsandbytes.functional import int8_vectorwise_quant

    weight, scales, _ = int8_vectorwise_quant(dense.to(torch.float16))
    weight.CB, weight.SCB = weight.detach(), scales
    quantized: torch.Tensor = weight
    return quantized


_QUANTIZE: dict[str, Callable[[Any, Any], Any]] = {"Linear4bit": _in_4bit, "Linear8bitLt": _in_int8}
"""By the layer's class."""


_CODE, _CODE_VALUES = "dynamic", 256
"""The code of nested quantization: its name in bitsandbytes' cache, and its number of values."""


@contextmanager
def _own_code(device: str) -> Iterator[None]:
    """Give bitsandbytes a code of nested quantization without values, which it would compute from values and cache."""
    import torch

    if find_spec("bitsandbytes") is None:
        yield
        return
    from bitsandbytes.functional import name2qmap

    with patch.dict(name2qmap, {_CODE: torch.empty(_CODE_VALUES, device=device)}):
        yield
