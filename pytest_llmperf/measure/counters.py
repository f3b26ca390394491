"""Deterministic counts from one untimed request: operators and KV cache bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class OperatorCount:
    """Operators dispatched so far."""

    def __init__(self) -> None:
        self.total = 0


@contextmanager
def count_operators() -> Iterator[OperatorCount]:
    """Count the operators that torch dispatches in the block.

    A composite operator counts as its parts; a custom operator, such as a quantized matrix product, counts as one.
    """
    from torch.utils._python_dispatch import TorchDispatchMode

    count = OperatorCount()

    class Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]  # untyped in torch
        def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
            count.total += 1
            return func(*args, **(kwargs or {}))

    with Counting():  # type: ignore[no-untyped-call]  # untyped in torch
        yield count


def cache_bytes(cache: Any) -> int | None:
    """Bytes of keys and values in a transformers KV cache; ``None`` for an unknown kind of cache."""
    import torch

    layers = getattr(cache, "layers", None)
    if not layers:
        return None
    found = [value for layer in layers for value in vars(layer).values() if isinstance(value, torch.Tensor)]
    tensors = [tensor for tensor in found if tensor.dim()]  # a static cache keeps its length in a 0-d tensor
    return sum(tensor.nbytes for tensor in tensors) if tensors else None
