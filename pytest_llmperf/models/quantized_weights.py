"""What the weights of a loaded model really are: from the tensors that it holds, because its config may be wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_llmperf.errors import ModelError
from pytest_llmperf.metrics import Scalar
from pytest_llmperf.models.quantization import DEFAULT_THRESHOLD, DENSE, FOUR_BIT, STORED

if TYPE_CHECKING:
    import torch

_DENSE_BYTES = 2
"""Bytes of a weight in 16 bit: shares are of these, so that they do not depend on the form."""
_TORCHAO = {"Int8Tensor": "int8", "Float8Tensor": "fp8"}
_ADAPTERS = "lora_"


@dataclass(frozen=True)
class LinearWeight:
    """A weight of a linear layer, or a stack of them in a mixture of experts.

    Attributes:
        name: The path of the module or parameter.
        form: The weight's form, such as ``bf16``, ``nf4`` or ``gptq-4bit``.
        bytes: Bytes that it would have in 16 bit.
        layer: The class of its layer.
        is_stack: Whether it is a stack of experts.
    """

    name: str
    form: str
    bytes: int
    layer: type
    is_stack: bool = False


@dataclass(frozen=True)
class Verified:
    """What a model's weights are.

    Attributes:
        label: The quantization, as recorded.
        settings: What the label leaves open: ``quantized_share``, ``experts``, ``experts_implementation``.
    """

    label: str
    settings: Mapping[str, Scalar]


def quantization_label(model: Any) -> str:
    """The form of a model's linear weights, such as ``bf16``, ``nf4`` or ``gptq-4bit``; ``mixed ...`` for several."""
    forms = [*_bytes_by_form(linear_weights(model))] or [dense_form(next(model.parameters()).dtype)]
    return forms[0] if len(forms) == 1 else " ".join(["mixed", *forms])


def quantized_share(model: Any, form: str) -> float:
    """The share of a model's linear weights that has a form, by their bytes in 16 bit.

    Embeddings, norms, routers, the head and adapters are not counted: no quantization here is meant for them.
    """
    return _share(linear_weights(model), form)


def verify(model: Any, asked: str) -> Verified:
    """Check that a model's weights have the form that was asked for.

    Args:
        model: The loaded model.
        asked: A quantization's name; ``stored`` is whichever quantized form most of the weights have.

    Raises:
        ModelError: No weight has that form; the message names the reason.
    """
    weights = list(linear_weights(model))
    form = _stored_form(weights) if asked == STORED else asked
    share = _share(weights, form)
    if weights and not share:
        raise ModelError(_why_not(weights, asked))
    partial = {"quantized_share": min(max(round(share, 3), 0.001), 0.999)} if weights and share < 1 else {}
    return Verified(form, {**partial, **dict(_of_experts(model, weights))})


def _of_experts(model: Any, weights: list[LinearWeight]) -> Iterator[tuple[str, Scalar]]:
    """What a label leaves open about the experts of a mixture: how they are computed, such as ``grouped_mm``."""
    stacks = [weight for weight in weights if weight.is_stack]
    if stacks and (implementation := getattr(model.config.get_text_config(), "_experts_implementation", None)):
        yield "experts_implementation", implementation
    if any(weight.form in FOUR_BIT for weight in stacks):
        yield "experts", stacks[0].form


def linear_weights(model: Any) -> Iterator[LinearWeight]:
    """The weights of a model's linear layers and experts, without those that are not counted (`quantized_share`)."""
    head, method = _head(model), _method(model)
    for name, module in model.named_modules():
        if module is not head and not is_router(name) and _ADAPTERS not in name:
            yield from _weights_of(name, module, method)


def _head(model: Any) -> Any | None:
    return model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None


def is_router(name: str) -> bool:
    """Whether a module's path is that of a router or of the gate of a shared expert."""
    return any(part == "gate" or "router" in part or part.endswith("expert_gate") for part in name.split("."))


def expert_stacks(model: Any) -> Iterator[tuple[torch.nn.Module, str]]:
    """The modules and parameter names of dense stacks of experts: three-dimensional parameters."""
    for name, module in model.named_modules():
        yield from ((module, parameter) for parameter in _stacks(name, module))


def dense_form(dtype: torch.dtype) -> str:
    """The name of unquantized weights of a dtype."""
    name = str(dtype).removeprefix("torch.")
    return next((form for form, dense in DENSE.items() if dense == name), name)


def _weights_of(name: str, module: Any, method: str) -> Iterator[LinearWeight]:
    elements = _elements(module)
    if elements:
        yield LinearWeight(name, _form(module, elements, method), elements * _DENSE_BYTES, type(module))
        return
    for parameter in _stacks(name, module):
        stack = getattr(module, parameter)
        form = _tensor_form(stack, stack.numel(), method)
        yield LinearWeight(f"{name}.{parameter}", form, stack.numel() * _DENSE_BYTES, type(module), is_stack=True)
    if state := quant_state_of(module):
        yield LinearWeight(name, _four_bit(state), state.shape.numel() * _DENSE_BYTES, type(module), is_stack=True)


def quant_state_of(module: Any) -> Any | None:
    """The state of a parameter that bitsandbytes quantized by a parametrization, if the module holds one."""
    is_list = type(module).__name__ == "ParametrizationList"
    return getattr(module[0], "quant_state", None) if is_list and len(module) else None


def _stacks(name: str, module: Any) -> list[str]:
    """Names of a module's own parameters that are stacks of experts; a convolution's kernel is none."""
    if "expert" not in f"{name}.{type(module).__name__}".lower():
        return []
    return [key for key, value in module._parameters.items() if value is not None and value.ndim == 3]  # noqa: PLR2004, SLF001  # experts, rows, columns; without those of its parts


def _elements(module: Any) -> int:
    """The number of weights of a linear layer, of whichever library; 0 for other modules."""
    if not any(True for _ in _own_tensors(module)):
        return 0  # an adapter around a layer has sizes too
    if type(module).__name__ == "Conv1D":  # of transformers: a linear layer with a transposed weight
        return int(module.nx * module.nf)
    if type(module).__name__.startswith("Mxfp4"):
        return int(module.num_experts * 3 * module.hidden_size * module.intermediate_size)
    rows, columns = (getattr(module, f"{side}_features", getattr(module, f"{side}features", 0)) for side in _SIDES)
    return int(rows * columns)


_SIDES = ("out", "in")


def _own_tensors(module: Any) -> Iterator[torch.Tensor]:
    for owned in (module._parameters, module._buffers):  # noqa: SLF001  # without those of its parts
        yield from (tensor for tensor in owned.values() if tensor is not None)


def _form(module: Any, elements: int, method: str) -> str:
    """The form of a linear layer's weight."""
    if type(module).__name__.startswith("Mxfp4"):
        return "mxfp4"
    weight = module._parameters.get("weight")  # noqa: SLF001  # without what a property computes
    if getattr(weight, "quant_state", None) is not None:
        return _four_bit(weight.quant_state)
    if type(module).__name__ == "Linear8bitLt" and not module.weight.is_floating_point():
        return _int8(module.state.threshold)
    packed = [tensor for tensor in _own_tensors(module) if not tensor.is_floating_point()]
    main = weight if weight is not None else max(packed, key=_nbytes, default=next(_own_tensors(module)))
    return _tensor_form(main, elements, method)


def _four_bit(state: Any) -> str:
    """The form of a weight with a state of bitsandbytes; the CPU kernel unpacks the nested state at the first use."""
    double = getattr(state, "original_nested", state.nested)
    prefix = "" if state.quant_type == "nf4" else "bitsandbytes-"
    return f"{prefix}{state.quant_type}{'-dq' if double else ''}"


def _int8(threshold: float) -> str:
    if threshold in (0.0, DEFAULT_THRESHOLD):
        return "int8-decomp" if threshold else "int8"
    return f"int8-threshold-{threshold:g}"


def _tensor_form(tensor: torch.Tensor, elements: int, method: str) -> str:
    """The form of a weight's main tensor, by its class, dtype and bytes per weight."""
    if hasattr(tensor, "__tensor_flatten__"):
        return _wrapper_form(tensor, elements, method)
    if "float8" in str(tensor.dtype):
        return "fp8" if method in ("", "fp8") else f"{method}-fp8"
    if tensor.is_floating_point():
        return dense_form(tensor.dtype)
    return _by_bits(tensor, elements, method)


def _wrapper_form(tensor: Any, elements: int, method: str) -> str:
    """The form of a weight whose class wraps other tensors."""
    kind, package = type(tensor).__name__, type(tensor).__module__.partition(".")[0]
    if package == "torchao":
        form = "int4" if kind.startswith("Int4") else _TORCHAO.get(kind, kind.removesuffix("Tensor").lower())
        return f"torchao-{form}{'dq' if getattr(tensor, 'act_quant_kwargs', None) is not None else 'wo'}"
    inner = [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
    return _by_bits(max(inner, key=_nbytes), elements, method or package)


def _by_bits(tensor: torch.Tensor, elements: int, method: str) -> str:
    return f"{method or 'unknown'}-{round(8 * _nbytes(tensor) / elements)}bit"


def _nbytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _method(model: Any) -> str:
    """The name of the method by which another library quantized the model, from its config; empty if it has none."""
    config = getattr(getattr(model, "config", None), "quantization_config", None)
    return method_of(config) if config else ""


def method_of(config: Any) -> str:
    """The method that a ``quantization_config`` names, such as ``gptq``; ``unknown`` if it names none."""
    found = config.get("quant_method") if isinstance(config, dict) else getattr(config, "quant_method", None)
    return str(getattr(found, "value", found) or "unknown")


def _bytes_by_form(weights: Iterator[LinearWeight] | list[LinearWeight]) -> dict[str, int]:
    """Bytes by form, most first."""
    count: Counter[str] = Counter()
    for weight in weights:
        count[weight.form] += weight.bytes
    return dict(count.most_common())


def _share(weights: Iterator[LinearWeight] | list[LinearWeight], form: str) -> float:
    found = _bytes_by_form(weights)
    return found.get(form, 0) / (sum(found.values()) or 1)


def _stored_form(weights: list[LinearWeight]) -> str:
    """The quantized form that most weights have; the dense one if there is none."""
    forms = _bytes_by_form(weights)
    return next((form for form in forms if form not in DENSE), STORED)


def _why_not(weights: list[LinearWeight], asked: str) -> str:
    """Why no weight has the form that was asked for."""
    found = _bytes_by_form(weights)
    total, dense = sum(found.values()), " and ".join(found)
    if asked == STORED:
        return (
            f"was converted to {dense} while loading (all {total:,} bytes of linear weights): choose a device that "
            f"computes with the stored weights, or a dense checkpoint as {dense}"
        )
    return (
        f"{asked!r} was not applied: 0 of {total:,} bytes of linear weights are {asked}, all are {dense}"
        f"{_cause(weights)}; choose {dense} or another quantization"
    )


def _cause(weights: list[LinearWeight]) -> str:
    names = sorted({weight.layer.__name__ for weight in weights} - {"Linear"})
    return f"; transformers quantizes layers of class nn.Linear, and these are {', '.join(names)}" if names else ""
