"""Bytes that one operator reads and writes, by its arguments and results.

Each tensor counts once for each argument that it is, however often a kernel reads it or keeps it in a cache. What a
kernel keeps to itself, such as the scores of a fused attention, does not count. So the figure is the least that an
operator must move, and it is the same on each device.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from math import prod
from typing import TYPE_CHECKING, Any

from pytest_llmperf.measure.operator_call import OperatorCall, touched_bytes

if TYPE_CHECKING:
    import torch


def moved_bytes(call: OperatorCall) -> dict[str, int]:
    """Bytes read and written by a call that has run, by dtype.

    - A view moves nothing, nor does an operator that looks only at shapes.
    - A gather reads its indices, and of the table as many bytes as it returns. A scatter writes, of the tensor that it
      changes, what it was given; it also reads that much if it accumulates.
    - An operator in place reads its tensor and writes it. A copy and a fill only write it, as ``out=`` does.
    - ``empty`` allocates and writes nothing. Other factories write their result.
    - A product with a matrix for each expert reads no more matrices than it has rows.
    """
    moved: dict[str, int] = {}
    if call.only_views or call.name in _SHAPES_ONLY:
        return moved
    for name, tensor in call.inputs:
        if times := _reads(call, name) + (name in call.written):
            dtype = dtype_name(tensor)
            moved[dtype] = moved.get(dtype, 0) + times * _touched(call, name, tensor)
    if call.new_results and not _matches(_EMPTY, call.name):
        for tensor in call.new_results:
            dtype = dtype_name(tensor)
            moved[dtype] = moved.get(dtype, 0) + touched_bytes(tensor)
    return {dtype: size for dtype, size in moved.items() if size}


def dtype_name(tensor: torch.Tensor) -> str:
    """A tensor's dtype as torch writes it: ``bfloat16``."""
    return _name_of(tensor.dtype)


@cache
def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@cache
def _matches(pattern: re.Pattern[str], operator: str) -> bool:
    return pattern.fullmatch(operator) is not None


_SHAPES_ONLY = {
    "aten::_fused_sdp_choice",
    "aten::_has_compatible_shallow_copy_type",
    "aten::is_same_size",
    "aten::_resize_output_",
    "aten::resize_",
    "aten::set_",
    "prim::device",
}
"""Operators that read no numbers although they have tensors as arguments."""

_EMPTY = re.compile(r"aten::(new_)?empty(_\w+)?|aten::resize_")
_FACTORY = re.compile(r"aten::(new_\w+|\w+_like)")
"""Operators that take only the shape and the dtype of their tensor."""
_OVERWRITING = re.compile(r"aten::(copy|fill|zero|uniform|normal|bernoulli|random|exponential)_")
"""Operators in place that do not read the tensor they write to."""


def _reads(call: OperatorCall, name: str) -> bool:
    """Whether an argument's numbers are read."""
    if name in call.overwritten or _matches(_FACTORY, call.name):
        return False
    if name not in call.written:
        return True
    if call.name in _SCATTERS:
        return bool(_matches(_ACCUMULATING, call.name) or call.arguments.get("accumulate"))
    return not _matches(_OVERWRITING, call.name)


def _touched(call: OperatorCall, name: str, tensor: torch.Tensor) -> int:
    """Bytes of an argument that a call touches."""
    argument, rule = _PARTIAL.get(call.name, ("", None))
    whole = touched_bytes(tensor)
    return whole if rule is None or name != argument else min(whole, rule(call, tensor))


def _gathered(call: OperatorCall, _table: torch.Tensor) -> int:
    return sum(touched_bytes(result) for result in call.results)


def _rows(call: OperatorCall, tensor: torch.Tensor) -> int:
    """Bytes of a dimension's entries at so many indices."""
    size = tensor.shape[call.arguments["dim"]] if tensor.dim() else 1
    return tensor.nbytes // max(size, 1) * int(call.arguments["index"].numel())


def _entries(call: OperatorCall, tensor: torch.Tensor) -> int:
    """Bytes of single entries at so many indices."""
    return tensor.itemsize * int(call.arguments["index"].numel())


def _indexed(call: OperatorCall, tensor: torch.Tensor) -> int:
    """Bytes of ``tensor[indices]``. A mask may choose all, so it counts as if it did."""
    import torch

    indices: list[Any] = call.arguments["indices"]
    given = [index for index in indices if index is not None]
    if any(index.dtype in (torch.bool, torch.uint8) for index in given):
        return tensor.nbytes
    chosen: int = prod(torch.broadcast_shapes(*(index.shape for index in given)))  # type: ignore[no-untyped-call]  # untyped in torch
    others = [size for place, size in enumerate(tensor.shape) if place >= len(indices) or indices[place] is None]
    return tensor.itemsize * chosen * prod(others)


def _active_experts(call: OperatorCall, weights: torch.Tensor) -> int:
    """Bytes of as many experts' matrices as there are rows, each of which goes to one expert."""
    rows = call.first()
    if rows.dim() != 2 or weights.dim() != 3:  # noqa: PLR2004  # all experts have their rows in another layout
        return weights.nbytes
    return weights.nbytes // max(weights.shape[0], 1) * rows.shape[0]


_SCATTERS = {
    **{f"aten::index_{what}_": ("self", _rows) for what in ("copy", "add", "fill", "reduce")},
    **{f"aten::scatter_{what}": ("self", _entries) for what in ("", "add_", "reduce_")},
    **{f"aten::{what}_": ("self", _indexed) for what in ("index_put", "_index_put_impl")},
}
_ACCUMULATING = re.compile(r"aten::(index|scatter)_(add|reduce)_")
_PARTIAL: dict[str, tuple[str, Callable[[OperatorCall, torch.Tensor], int] | None]] = {
    **{f"aten::{what}": ("self", _gathered) for what in ("index_select", "index", "_unsafe_index", "gather", "take")},
    "aten::embedding": ("weight", _gathered),
    **_SCATTERS,
    "aten::_grouped_mm": ("mat2", _active_experts),
    "aten::_scaled_grouped_mm": ("mat2", _active_experts),
    "transformers::grouped_mm_fallback": ("weight", _active_experts),
}
"""Operators that touch only a part of one argument: its name, and how many bytes."""
