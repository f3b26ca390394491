"""Bytes of a KV cache and of recurrent states after a request."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import ref

from pytest_llmperf.system.tensors import tensors_in

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class CacheSize:
    """Size of a KV cache or of recurrent states after a request."""

    total_bytes: int
    growing_bytes: int
    """Bytes of keys and values with an entry for each position. Recurrent states and full sliding windows have the same
    size in each step."""


def cache_size(cache: Any, positions: int, states: Iterable[torch.Tensor] = ()) -> CacheSize | None:
    """Measure a cache of any kind; ``None`` if there is none.

    Args:
        cache: an object that holds tensors at any depth. Numbers, such as a static cache's length, do not count.
        positions: number of tokens in the cache.
        states: tensors that the model keeps in its modules instead.
    """
    found: dict[Hashable, torch.Tensor] = {}
    for tensor in tensors_in([cache, *states]):
        if tensor.dim() and tensor.nbytes > getattr(found.get(key := _memory(tensor)), "nbytes", 0):
            found[key] = tensor
    total = sum(map(_own_bytes, found.values()))
    return CacheSize(total, _growing_bytes(cache, positions)) if total else None


def _growing_bytes(cache: Any, positions: int) -> int:
    """Bytes of a cache's keys and values: tensors of its layers with an entry for each position.

    A layer keeps recurrent states one level deeper. One of their sizes may equal the number of positions by chance.
    """
    import torch

    held = (value for layer in getattr(cache, "layers", ()) for value in vars(layer).values())
    tensors = (value for value in held if isinstance(value, torch.Tensor) and value.shape[-2:-1] == (positions,))
    return sum(map(_own_bytes, tensors))


def _memory(tensor: torch.Tensor) -> Hashable:
    return tensor.device, tensor.data_ptr()


def _own_bytes(tensor: torch.Tensor) -> int:
    """Bytes of a tensor, or of its storage if that is smaller, as that of an expanded one is."""
    return min(tensor.nbytes, tensor.untyped_storage().nbytes())


class NewStates:
    """Recurrent states that a model keeps in its modules: floating-point attributes that a request replaces.

    Parameters and buffers are not among them. Recurrent Gemma has such states.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        # Weak references: old states must not stay alive during the request.
        self._before = {name: ref(tensor) for name, tensor in self._attributes()}

    def find(self) -> list[torch.Tensor]:
        """The attributes that are new since this object was created."""
        before = self._before
        return [tensor for name, tensor in self._attributes() if name not in before or before[name]() is not tensor]

    def _attributes(self) -> Iterator[tuple[tuple[str, str], torch.Tensor]]:
        for path, module in self._model.named_modules():
            for name, value in list(vars(module).items()):
                if _is_floating(value):
                    yield (path, name), value


def _is_floating(value: object) -> bool:
    import torch

    return isinstance(value, torch.Tensor) and value.is_floating_point()
