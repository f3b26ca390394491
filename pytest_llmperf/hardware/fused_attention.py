"""Which kernel torch's attention chooses on a CUDA device that is not here.

``scaled_dot_product_attention`` asks the driver for a device, finds none, and falls back to matrix products. This
module chooses as torch does on a device of the given capability, by the rules of `sdp_utils.cpp`_ that dense tensors
without gradients and dropout can break, and calls the operator that torch would call (`attention.cpp`_).

.. _sdp_utils.cpp: https://github.com/pytorch/pytorch/blob/main/aten/src/ATen/native/transformers/cuda/sdp_utils.cpp
.. _attention.cpp: https://github.com/pytorch/pytorch/blob/main/aten/src/ATen/native/transformers/attention.cpp
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

if TYPE_CHECKING:
    import torch

_LARGEST_FLASH_HEAD = 256
_LARGEST_CUDNN_HEAD = 128
_PADDED_TO = 8
"""Flash attention pads heads to a multiple of this size, and cuDNN requires one."""
_CUDNN_PREFERRED_FROM = 91501
"""Version of cuDNN from which torch prefers it on Hopper and Blackwell (check_prefer_cudnn_attention)."""
_GROUPED = "Memory-efficient attention also supports"
"""The documentation of versions in which that kernel takes fewer heads of keys than of queries says so."""
_SIXTEEN_BIT = ("float16", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class AttentionCall:
    """Arguments of ``scaled_dot_product_attention``, of shapes ``(batch, heads, tokens, head size)``."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    attn_mask: torch.Tensor | None = None
    dropout_p: float = 0.0
    is_causal: bool = False
    scale: float | None = None
    enable_gqa: bool = False

    @property
    def factor(self) -> float:
        """The scale of the scores."""
        return 1 / math.sqrt(self.query.shape[-1]) if self.scale is None else self.scale


@contextmanager
def choosing_attention(capability: tuple[int, int]) -> Iterator[None]:
    """In the block, attention on fake CUDA tensors is composed of what a device of this capability would run.

    Like torch's own composition, it takes effect in inference mode, in which dispatch modes see the operator.
    """
    import torch

    attention = torch.ops.aten.scaled_dot_product_attention.default
    compose = attention._op_dk  # noqa: SLF001  # torch has no public way to compose an operator otherwise

    def composed(key: Any, *args: Any, **kwargs: Any) -> Any:
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        call = AttentionCall(**dict(zip(names, args, strict=False)), **kwargs)
        name = chosen_kernel(call, capability)
        return KERNELS[name](call) if name else compose(key, *args, **kwargs)

    with patch.object(attention, "_op_dk", composed):
        yield


def chosen_kernel(call: AttentionCall, capability: tuple[int, int]) -> str:
    """The name of the kernel in `KERNELS` that torch chooses; empty for matrix products, or on another device."""
    query, key, value = call.query, call.key, call.value
    if query.device.type != "cuda" or any(tensor.dim() != 4 for tensor in (query, key, value)):  # noqa: PLR2004  # see AttentionCall
        return ""
    grouped = query.shape[1] != key.shape[1] or key.shape[1] != value.shape[1]
    if min(query.shape[2], key.shape[2]) == 0 or call.dropout_p or (grouped and not call.enable_gqa):
        return ""
    rules: Mapping[str, Callable[[AttentionCall, tuple[int, int]], bool]] = {
        "cudnn": _suits_cudnn,
        "flash": _suits_flash,
        "efficient": partial(_suits_efficient, grouped=grouped),
    }
    return next((name for name in _order(capability) if _is_enabled(name) and rules[name](call, capability)), "")


def _order(capability: tuple[int, int]) -> tuple[str, ...]:
    """The kernels in the order in which torch tries them; cuDNN otherwise comes after the matrix products."""
    import torch

    version: int = torch.backends.cudnn.version() or 0  # type: ignore[no-untyped-call]  # untyped in torch
    prefers_cudnn = capability[0] in (9, 10) and version >= _CUDNN_PREFERRED_FROM
    return ("cudnn", "flash", "efficient") if prefers_cudnn else ("flash", "efficient")


def _is_enabled(name: str) -> bool:
    import torch

    asked: Mapping[str, Callable[[], bool]] = {
        "cudnn": torch.backends.cuda.cudnn_sdp_enabled,
        "flash": torch.backends.cuda.flash_sdp_enabled,
        "efficient": torch.backends.cuda.mem_efficient_sdp_enabled,
    }
    return asked[name]()


def _suits_cudnn(call: AttentionCall, capability: tuple[int, int]) -> bool:
    import torch

    heads = call.query.shape[-1], call.value.shape[-1]
    fits = all(size <= _LARGEST_CUDNN_HEAD and size % _PADDED_TO == 0 for size in heads)
    is_plain = not torch.are_deterministic_algorithms_enabled() and call.key.shape[2] != 1
    return capability >= (8, 0) and _dtype(call) in _SIXTEEN_BIT and fits and is_plain and _is_dense(call)


def _suits_flash(call: AttentionCall, capability: tuple[int, int]) -> bool:
    sizes = {tensor.shape[-1] for tensor in (call.query, call.key, call.value)}
    is_square = not call.is_causal or call.query.shape[2] == call.key.shape[2]
    fits = len(sizes) == 1 and max(sizes) <= _LARGEST_FLASH_HEAD and is_square and call.attn_mask is None
    return capability >= (8, 0) and _dtype(call) in _SIXTEEN_BIT and fits and _is_dense(call)


def _suits_efficient(call: AttentionCall, capability: tuple[int, int], *, grouped: bool) -> bool:
    import torch

    dtypes = ("float16", "float32", "bfloat16") if capability >= (8, 0) else ("float16", "float32")
    aligned = all(size % _alignment(call, capability) == 0 for size in (call.query.shape[-1], call.value.shape[-1]))
    same = call.query.shape[-1] == call.key.shape[-1]
    takes_groups = _GROUPED in str(torch.nn.functional.scaled_dot_product_attention.__doc__)
    return (takes_groups or not grouped) and _dtype(call) in dtypes and aligned and same and _is_dense(call)


def _alignment(call: AttentionCall, capability: tuple[int, int]) -> int:
    """The multiple that head sizes must be of (minimum_gemm_alignment)."""
    bits = 16 if _dtype(call) in _SIXTEEN_BIT else 32
    uses_tensor_cores = capability >= (8, 0) or bits == 16  # noqa: PLR2004  # bits
    return max(4 if capability >= (8, 0) else 1, 128 // bits if uses_tensor_cores else 1)


def _dtype(call: AttentionCall) -> str:
    """The dtype of all three tensors; empty if they differ."""
    dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in (call.query, call.key, call.value)}
    return dtypes.pop() if len(dtypes) == 1 else ""


def _is_dense(call: AttentionCall) -> bool:
    return all(tensor.stride(-1) == 1 or tensor.shape[-1] == 1 for tensor in (call.query, call.key, call.value))


def _cudnn(call: AttentionCall) -> torch.Tensor:
    import torch

    run = torch.ops.aten._scaled_dot_product_cudnn_attention  # noqa: SLF001  # torch calls it itself
    mask = None if call.attn_mask is None else _additive(call.attn_mask, call.query.dtype)
    found: torch.Tensor = run(
        call.query, call.key, call.value, mask, False, 0.0, call.is_causal, False, scale=call.scale
    )[0]
    return found


def _flash(call: AttentionCall) -> torch.Tensor:
    import torch

    size = call.query.shape[-1]
    padding = -size % _PADDED_TO
    padded = [
        torch.nn.functional.pad(tensor, (0, padding)) if padding else tensor
        for tensor in (call.query, call.key, call.value)
    ]
    run = torch.ops.aten._scaled_dot_product_flash_attention  # noqa: SLF001  # torch calls it itself
    found: torch.Tensor = run(*padded, 0.0, call.is_causal, False, scale=call.factor)[0]
    return found.narrow(-1, 0, size) if padding else found


def _efficient(call: AttentionCall) -> torch.Tensor:
    import torch

    mask = None if call.attn_mask is None else _expanded(_additive(call.attn_mask, call.query.dtype), call)
    run = torch.ops.aten._scaled_dot_product_efficient_attention  # noqa: SLF001  # torch calls it itself
    found: torch.Tensor = run(call.query, call.key, call.value, mask, False, 0.0, call.is_causal, scale=call.scale)[0]
    return found


def _additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A mask to add to the scores, made of one of truth values (convert_boolean_attn_mask)."""
    import torch

    if mask.dtype != torch.bool:
        return mask
    return torch.where(mask, 0.0, torch.scalar_tensor(-torch.inf, dtype=dtype, device=mask.device))


def _expanded(mask: torch.Tensor, call: AttentionCall) -> torch.Tensor:
    """A mask of the scores' shape whose rows begin at multiples of eight, as the kernel requires (preprocess_mask)."""
    import torch

    tokens = call.key.shape[2]
    if padding := -tokens % _PADDED_TO:
        mask = torch.nn.functional.pad(mask, (0, padding)).narrow(-1, 0, tokens)
    return mask.expand(*call.query.shape[:3], tokens)


KERNELS: Mapping[str, Callable[[AttentionCall], torch.Tensor]] = MappingProxyType(
    {"cudnn": _cudnn, "flash": _flash, "efficient": _efficient}
)
"""The fused kernels by name."""
