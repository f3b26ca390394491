"""What quantizing libraries can do with a model's layers, beyond what transformers asks of them."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from pytest_llmperf.errors import ModelError
from pytest_llmperf.models.quantization import Quantization
from pytest_llmperf.models.quantized_weights import expert_stacks, is_router

if TYPE_CHECKING:
    import torch

_ROWS, _COLUMNS = 32, 64
"""On CPUs with AVX512-BF16, bitsandbytes repacks 4-bit weights in blocks of so many rows and columns."""
PARAMETRIZE = "bitsandbytes.nn.parametrize"
"""The module that quantizes parameters of any layer; older versions do not have it."""
_READ_AS_THEY_ARE = {"MambaMixer": "dt_proj"}
"""Layers whose weight the model multiplies itself, so that it must be dense."""


def kept_dense(skeleton: torch.nn.Module) -> list[str]:
    """Names of the modules that must not be quantized, the head included; empty if transformers' own choice is right.

    These are routers and gates, which transformers quantizes where they are linear layers, and layers whose weight
    the model reads.

    Args:
        skeleton: The model without its weights.
    """
    import torch
    from transformers.quantizers.base import HfQuantizer

    linear = (name for name, module in skeleton.named_modules() if isinstance(module, torch.nn.Linear))
    kept = [name for name in linear if is_router(name) or _is_read(skeleton, name)]
    return [*HfQuantizer.get_modules_to_not_convert(skeleton), *kept] if kept else []


def quantize_experts(model: torch.nn.Module, quantization: Quantization) -> None:
    """Quantize the experts of a mixture to 4 bit, which transformers leaves dense, if bitsandbytes can.

    Each use dequantizes a layer's whole stack: this saves memory, not time.
    """
    if "load_in_4bit" not in quantization.bitsandbytes or find_spec(PARAMETRIZE) is None:
        return
    from bitsandbytes.nn.parametrize import replace_parameter_4bit

    options = quantization.bitsandbytes
    for module, name in [*expert_stacks(model)]:
        replace_parameter_4bit(
            module,
            name,
            quant_type=options["bnb_4bit_quant_type"],
            compress_statistics=options["bnb_4bit_use_double_quant"],
        )


def check_layers(model: torch.nn.Module, device: str, *, name: str) -> None:
    """Check that the quantized layers can run.

    Raises:
        ModelError: One cannot run on this device; the message names the layer and the rule.
    """
    if obstacle := next(_obstacles(model, device), ""):
        raise ModelError(f"model {name!r} cannot run quantized on {device!r}: {obstacle}; choose bf16, fp16 or fp32")


def _obstacles(model: torch.nn.Module, device: str) -> Iterator[str]:
    for name, module in model.named_modules():
        kind = type(module).__name__
        if kind == "Linear4bit" and device == "cpu" and _is_odd(module) and repacks_4bit():
            yield (
                f"layer {name!r} has {module.out_features} rows and {module.in_features} columns, and bitsandbytes "
                f"needs multiples of {_ROWS} and {_COLUMNS} on a CPU with AVX512-BF16"
            )
        if kind == "Linear8bitLt" and device == "cpu" and _takes_four_dimensions(model, name):
            yield f"layer {name!r} has a four-dimensional input, and bitsandbytes' int8 takes at most three on a CPU"
        if hasattr(module, "_bnb_4bit_dequantize_and_rescale") and _cannot_be_rescaled(module):
            yield f"transformers rescales the weights of {kind} at the first request, which changes their quantization"
        if _multiplies_itself(module):
            yield f"layer {name!r} is a {kind}, which does not use torch's product, the only one that torchao has"


def _cannot_be_rescaled(module: torch.nn.Module) -> bool:
    """Whether a part has weights in 4 bit, which become fp4, or of torchao, which cannot be changed."""
    return any(type(part).__name__ == "Linear4bit" or _is_torchao(part) for part in module.modules())


def _is_torchao(module: Any) -> bool:
    return type(getattr(module, "weight", None)).__module__.partition(".")[0] == "torchao"


def _is_odd(module: Any) -> bool:
    return bool(module.out_features % _ROWS or module.in_features % _COLUMNS)


def _takes_four_dimensions(model: torch.nn.Module, name: str) -> bool:
    """Whether the layer expands a compressed cache of DeepSeek's attention, which has a dimension of heads."""
    return name.endswith("kv_b_proj") and hasattr(_parent(model, name), "expand_kv")


def _multiplies_itself(module: Any) -> bool:
    """Whether a linear layer with a weight of torchao has a product of its own."""
    import torch

    return _is_torchao(module) and type(module).forward is not torch.nn.Linear.forward


def repacks_4bit() -> bool:
    """Whether bitsandbytes repacks 4-bit weights on this CPU, since 0.49, because its kernel reads another layout."""
    from bitsandbytes import functional

    return bool(getattr(functional, "has_avx512bf16", bool)())


def _is_read(model: torch.nn.Module, name: str) -> bool:
    return _READ_AS_THEY_ARE.get(type(_parent(model, name)).__name__) == name.rpartition(".")[2]


def _parent(model: torch.nn.Module, name: str) -> torch.nn.Module:
    return model.get_submodule(name.rpartition(".")[0])
