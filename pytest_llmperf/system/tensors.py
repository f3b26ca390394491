"""Tensors inside other objects: in the attributes of a cache, and in wrapper tensors of quantization libraries."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from itertools import chain
from types import NoneType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def tensors_in(owner: object, seen: set[int] | None = None) -> Iterator[torch.Tensor]:
    """All tensors in an object's attributes, items and so on, wrappers unwrapped; modules are not entered."""
    import torch

    seen = set() if seen is None else seen
    if id(owner) in seen or isinstance(owner, torch.nn.Module | type):
        return
    seen.add(id(owner))
    if isinstance(owner, torch.Tensor):
        yield from unwrapped(owner)
    else:
        yield from chain.from_iterable(tensors_in(part, seen) for part in _parts(owner))


def _parts(owner: object) -> Iterable[object]:
    if isinstance(owner, Mapping):
        return list(owner.values())
    if isinstance(owner, list | tuple | set):
        return owner
    return list(getattr(owner, "__dict__", {}).values())


def unwrapped(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The tensors that hold a tensor's memory: itself, or the inner ones of a wrapper, as torch.compile finds them."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        yield tensor
    else:
        yield from tensors_in([getattr(tensor, name) for name in flatten()[0]])


_NO_TENSORS = frozenset({int, float, bool, str, NoneType})


def tensors_of(value: Any) -> list[torch.Tensor]:
    """A tensor, or those in lists, tuples and mappings at any depth, such as an operator's arguments and results."""
    import torch

    if type(value) in _NO_TENSORS:  # most arguments; it is asked for each argument of each operator
        return []
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if not isinstance(value, list | tuple):
        return []
    return [tensor for part in value for tensor in tensors_of(part)]


def storage_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the storages of tensors, wrappers unwrapped; shared storage counts once, and no storage as 0.

    A fake tensor counts as if it was real.
    """
    found: dict[Hashable, int] = {}
    for tensor in chain.from_iterable(map(unwrapped, tensors)):
        if (key := memory_key(tensor)) is not None:
            found[key] = tensor.untyped_storage().nbytes()
    return sum(found.values())


def memory_key(tensor: torch.Tensor) -> Hashable | None:
    """What tensors share if they share memory; ``None`` if it has none of its own, as sparse and wrapper tensors."""
    try:
        if is_without_values(tensor):  # asking for its address warns
            return tensor.device, "fake", storage_id(tensor)
        return tensor.device, tensor.untyped_storage().data_ptr()
    except RuntimeError:
        return None


def storage_id(tensor: torch.Tensor) -> int:
    """What two tensors have in common if they are views of one storage, while it lives; fake tensors have no address.

    Raises:
        RuntimeError: it is a view of no storage.
    """
    identity: int = tensor.untyped_storage()._cdata  # noqa: SLF001  # storages have no public identity
    return identity


def is_without_values(tensor: torch.Tensor) -> bool:
    """Whether it is a fake tensor."""
    from torch._subclasses.fake_tensor import FakeTensor

    return issubclass(type(tensor), FakeTensor)
