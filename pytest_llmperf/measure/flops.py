"""Floating-point operations of one operator, by its shapes.

A multiplication and an addition count as two. Only products of matrices and convolutions count: operators that work
number by number, such as norms and activations, count 0, as in `torch.utils.flop_counter`. A causal attention counts as
if no position were masked, as there.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from math import prod
from typing import TYPE_CHECKING, Any

from pytest_llmperf.measure.moved_bytes import dtype_name
from pytest_llmperf.measure.operator_call import OperatorCall

if TYPE_CHECKING:
    import torch

Flops = Counter[str]
"""Operations by the dtype that is multiplied."""


def flops_of(call: OperatorCall) -> Flops | None:
    """Operations of a call that has run; ``None`` if it computes and has no formula.

    The formula is ours, or else that of `torch.utils.flop_counter`. Without one, an operator computes unless it belongs
    to torch itself and its name is not that of a product, a convolution, an attention or a decomposition; operators of
    other libraries compute if they return or change a tensor.
    """
    formula = _FORMULAS.get(_plain_name(call.name)) or _torchs_formula(call.name)
    try:
        return Flops() if formula is None and not _computes(call) else formula and formula(call)
    except (AssertionError, LookupError, TypeError, ValueError):  # shapes that the formula does not know
        return None


def _plain_name(name: str) -> str:
    """The operator's name without the underscore of its variant in place."""
    return name.removesuffix("_")


_TORCHS_NAMESPACES = ("aten", "prim", "prims", "profiler")
_PRODUCT = re.compile(
    r"\w*mm|mv|addmv|dot|vdot|matmul|linear|conv(?!ert)\w*|convolution|\w*attention|einsum|trilinear|rnn|cdist|fft|encoder"
)
"""Words in the names of torch's operators that multiply matrices, or do as much work."""
_DECOMPOSITION = re.compile(
    r"_?(linalg_(?!\w*norm|cross|vander|diagonal|check_errors)\w+|cholesky\w*|lu_\w+|ormqr|geqrf)"
)


def _computes(call: OperatorCall) -> bool:
    """Whether an operator without a formula has work to count."""
    torchs = _torch_computes(call.name)
    return bool(call.results or call.written) if torchs is None else torchs


@cache
def _torch_computes(operator: str) -> bool | None:
    """Whether an operator of torch computes, by its name; ``None`` for those of other libraries."""
    namespace, _, name = _plain_name(operator).partition("::")
    if namespace not in _TORCHS_NAMESPACES:
        return None
    return bool(_DECOMPOSITION.fullmatch(name)) or any(_PRODUCT.fullmatch(word) for word in name.split("_"))


def _torchs_formula(operator: str) -> Callable[[OperatorCall], Flops] | None:
    from torch.utils.flop_counter import flop_registry

    formula = flop_registry.get(_packet(operator))
    return formula and (lambda call: Flops({_dtype(call): _by_registry(formula, call)}))


@cache
def _packet(operator: str) -> Any:
    """The operator with all of its overloads, as the registry has it; ``None`` if there is none of that name."""
    import torch

    namespace, _, name = _plain_name(operator).partition("::")
    return getattr(getattr(torch.ops, namespace), name, None)


def _by_registry(formula: Callable[..., int], call: OperatorCall) -> int:
    """A registered formula's result. It takes what the operator takes, and ``out_val``, what it returns."""
    results = call.results[0] if len(call.results) == 1 else tuple(call.results)
    return formula(*call.args, **call.kwargs, out_val=results)


def _dtype(call: OperatorCall) -> str:
    """The dtype of the first floating-point argument, or else of the first one."""
    tensors = [tensor for _, tensor in call.inputs]
    return dtype_name(next((tensor for tensor in tensors if tensor.is_floating_point()), tensors[0]))


def _argument(call: OperatorCall, place: int) -> Any:
    return list(call.arguments.values())[place]


def _none(_call: OperatorCall) -> Flops:
    return Flops()


def _times(rows: torch.Tensor, columns: int) -> Flops:
    """A product of ``(..., k)`` with ``columns`` columns of ``k``."""
    return Flops({dtype_name(rows): 2 * rows.numel() * columns})


def _with_rows(call: OperatorCall) -> Flops:
    """A product of the first argument, ``(..., k)``, with the rows of the second, ``(n, k)``."""
    return _times(_argument(call, 0), _argument(call, 1).shape[0])


def _with_columns(call: OperatorCall) -> Flops:
    """A product of the first argument, ``(m, k)``, with the columns of the second, ``(k, n)``."""
    return _times(_argument(call, 0), _argument(call, 1).shape[-1])


def _to_result(call: OperatorCall) -> Flops:
    """A product of the first argument, ``(..., k)``, with a packed matrix; the result is ``(..., n)``."""
    return _times(_argument(call, 0), call.results[0].shape[-1])


def _with_packed(call: OperatorCall) -> Flops:
    """A product of the first argument, ``(..., k)``, with a packed matrix, whose shape, ``(n, k)``, is the third."""
    return _times(_argument(call, 0), _argument(call, 2)[0])


def _with_vector(call: OperatorCall) -> Flops:
    return _times(_argument(call, 0), 1)


def _added_vector(call: OperatorCall) -> Flops:
    return _times(_argument(call, 1), 1)


def _added_columns(call: OperatorCall) -> Flops:
    return _times(_argument(call, 1), _argument(call, 2).shape[-1])


def _grouped(call: OperatorCall) -> Flops:
    """A product for each group; which rows belong to which group does not matter.

    Two matrices whose inner dimension is grouped, or rows with a matrix for each group, or, if only the first argument
    is ``(groups, m, k)``, columns with a matrix for each group.
    """
    left, right = _argument(call, 0), _argument(call, 1)
    rows = prod(left.shape[1:]) if left.dim() > right.dim() else left.numel()
    return Flops({dtype_name(left): 2 * rows * right.shape[-1]})


def _mixed_int8(call: OperatorCall) -> Flops:
    """The product of all columns in int8, and of the outliers' in the dtype of the activations."""
    rows, quantized, weights = (_argument(call, place) for place in range(3))
    outliers = call.arguments.get("outlier_cols")
    flops = _times(quantized, weights.shape[0])
    if outliers is not None:
        flops[dtype_name(rows)] += 2 * quantized.shape[0] * outliers.numel() * weights.shape[0]
    return +flops


def _attention(call: OperatorCall) -> Flops:
    """Scores of queries and keys, and the sum of values, as in `torch.utils.flop_counter.sdpa_flop_count`."""
    query, key, value = (_argument(call, place).shape for place in range(3))
    scores = prod(query[:-1]) * key[-2]
    return Flops({_dtype(call): 2 * scores * (query[-1] + value[-1])})


_FORMULAS: dict[str, Callable[[OperatorCall], Flops]] = {
    # torch, aten/src/ATen/native/native_functions.yaml
    "aten::linear": _with_rows,
    "aten::mv": _with_vector,
    "aten::dot": _with_vector,
    "aten::vdot": _with_vector,
    "aten::addmv": _added_vector,
    "aten::addbmm": _added_columns,
    "aten::_addmm_activation": _added_columns,
    "aten::_int_mm": _with_columns,
    "aten::_grouped_mm": _grouped,
    "aten::_scaled_grouped_mm": _grouped,
    "aten::_scaled_dot_product_flash_attention_for_cpu": _attention,
    "aten::_scaled_dot_product_fused_attention_overrideable": _attention,
    "aten::_scaled_dot_product_attention_math_for_mps": _attention,
    # torchao: its layers on weights in int8 and int4 call these (torchao/quantization/utils.py, torchao/dtypes)
    "aten::_weight_int8pack_mm": _to_result,
    "aten::_weight_int4pack_mm": _to_result,
    "aten::_weight_int4pack_mm_for_cpu": _to_result,
    "aten::_weight_int4pack_mm_with_scales_and_zeros": _to_result,
    "aten::_dyn_quant_matmul_4bit": _to_result,
    # transformers/integrations/moe.py
    "transformers::grouped_mm_fallback": _grouped,
    # bitsandbytes/_ops.py
    "bitsandbytes::gemv_4bit": _with_packed,
    "bitsandbytes::gemm_4bit": _with_packed,
    "bitsandbytes::int8_linear_matmul": _with_rows,
    "bitsandbytes::int8_scaled_mm": _with_rows,
    "bitsandbytes::int8_mixed_scaled_mm": _mixed_int8,
    # these scale and look up numbers one by one
    "bitsandbytes::int8_vectorwise_quant": _none,
    "bitsandbytes::int8_vectorwise_dequant": _none,
    "bitsandbytes::int8_mm_dequant": _none,
    "bitsandbytes::int8_double_quant": _none,
    "bitsandbytes::dequantize_4bit": _none,
    "bitsandbytes::quantize_4bit": _none,
    "bitsandbytes::dequantize_blockwise": _none,
    "bitsandbytes::quantize_blockwise": _none,
}
