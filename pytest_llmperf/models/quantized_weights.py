"""Quantization of a model in memory, by what its layers are."""

from __future__ import annotations

from typing import Any

_DENSE = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


def quantization_label(model: Any) -> str:
    """The name of a model's quantization: that of its bitsandbytes layers, else of the dtype of its weights."""
    modules = {type(module).__name__: module for module in model.modules()}
    if four_bit := modules.get("Linear4bit"):
        nested = getattr(four_bit.weight, "compress_statistics", False)
        return str(four_bit.weight.quant_type) + ("-dq" if nested else "")
    if eight_bit := modules.get("Linear8bitLt"):
        return "int8-decomp" if eight_bit.state.threshold else "int8"
    found = next((tensor.dtype for tensor in model.parameters() if tensor.is_floating_point()), "unknown")
    name = str(found).removeprefix("torch.")
    return _DENSE.get(name, name)
