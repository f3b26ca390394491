"""Compare an operator's fake result with that of its real kernel on a CPU: a wrong shape would make counts wrong."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from pytest_llmperf.errors import MeasurementError
from pytest_llmperf.system.tensors import tensors_of

LARGEST_CHECKED_BYTES = 16 << 20
"""Operators with more bytes of arguments are not checked, so that a fake device needs no memory."""
_TORCHS_OWN = ("aten", "prim", "prims", "c10d", "_c10d_functional")


class OperatorCheck:
    """Runs each operator of another library than torch once per shape, on zeros, and compares shapes and dtypes."""

    def __init__(self) -> None:
        self._checked: set[Hashable] = set()

    def __call__(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        """Check one call.

        Raises:
            MeasurementError: the real kernel returns another shape or dtype than the fake one.
        """
        if func.namespace in _TORCHS_OWN:
            return
        given = _described((args, kwargs))
        if (func, given) in self._checked or _bytes_of((args, kwargs)) > LARGEST_CHECKED_BYTES:
            return
        self._checked.add((func, given))
        real = _on_zeros(func, args, kwargs)
        if real is not None and real != _described(result):
            name = f"{func.namespace}::{func.overloadpacket.__name__}"
            raise MeasurementError(
                f"operator {name}: its fake implementation returns {_text(_described(result))}, and its kernel "
                f"{_text(real)}: counts would be wrong; correct what torch.library.register_fake registers"
            )


def _on_zeros(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[str, ...] | None:
    """What the real kernel returns for zeros of the given shapes; ``None`` if it does not take them."""
    import torch
    from torch.utils._python_dispatch import _disable_current_modes
    from torch.utils._pytree import tree_map_only

    with _disable_current_modes():
        args, kwargs = tree_map_only(torch.Tensor, _zeros, (tuple(args), dict(kwargs)))
        try:
            return _described(func(*args, **kwargs))
        except Exception:  # noqa: BLE001  # any error of a foreign kernel: it cannot be checked with zeros
            return None


def _zeros(tensor: Any) -> Any:
    import torch

    found = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    return found.zero_()


def _described(value: Any) -> tuple[str, ...]:
    """Dtype and shape of each tensor, and other values as they are."""
    import torch
    from torch.utils._pytree import tree_leaves

    return tuple(
        f"{str(leaf.dtype).removeprefix('torch.')}{list(leaf.shape)}" if isinstance(leaf, torch.Tensor) else repr(leaf)
        for leaf in tree_leaves(value)
    )


def _bytes_of(value: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(value))


def _text(described: tuple[str, ...]) -> str:
    return ", ".join(described) or "nothing"
