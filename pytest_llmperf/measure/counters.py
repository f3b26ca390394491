"""Counts that do not depend on the machine's mood, from one untimed request."""

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
    """Count the operators that torch dispatches inside the block.

    Composite operators count as the ones they are made of; a custom operator, such as a quantized product, as one.
    """
    from torch.utils._python_dispatch import TorchDispatchMode

    count = OperatorCount()

    class Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
        def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
            count.total += 1
            return func(*args, **(kwargs or {}))

    with Counting():  # type: ignore[no-untyped-call]  # the same
        yield count


def cache_bytes(cache: Any) -> int | None:
    """Bytes of the keys and values in a cache of transformers; ``None`` for a kind of cache not known here."""
    import torch

    layers = getattr(cache, "layers", None)
    if not layers:
        return None
    found = [value for layer in layers for value in vars(layer).values() if isinstance(value, torch.Tensor)]
    tensors = [tensor for tensor in found if tensor.dim()]  # a static cache keeps its length in one without
    return sum(tensor.nbytes for tensor in tensors) if tensors else None
