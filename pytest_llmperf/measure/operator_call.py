"""One call of an operator of torch: its arguments and results, and whose memory they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from pytest_llmperf.system.tensors import storage_id, tensors_of

if TYPE_CHECKING:
    import torch


_LIFT = "aten::lift_fresh"
"""Returns its argument, the tensor of a constant. Only where tensors are fake is that another tensor."""


@dataclass(frozen=True)
class Signature:
    """What an operator's schema says; read once, because torch parses it anew each time it is asked."""

    name: str
    """Name without its overload, such as ``aten::add``."""
    arguments: tuple[str, ...]
    """Names of all arguments."""
    written: frozenset[str]
    """Names of the arguments that it writes to."""
    overwritten: frozenset[str]
    """Names of those that it only writes to."""
    changes_shape_only: bool


class OperatorCall:
    """The arguments of one call, taken before it runs, and its results, once it has run.

    It holds tensors, so it must not outlive the call.

    Attributes:
        arguments: Arguments by name, in the order of the operator's schema; those with default values are absent.
        inputs: Tensors among the arguments, those in lists included, with the arguments' names.
        results: Tensors among the results.
        new_results: Results in memory of their own. Others are arguments that the operator wrote to, or views of
            arguments.
        only_views: Whether the operator touched no numbers: its results are views, or it only changed an argument's
            shape.
    """

    def __init__(self, operator: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        signature = signature_of(operator)
        self.operator = operator
        self.name, self.written, self.overwritten = signature.name, signature.written, signature.overwritten
        self.args = args
        self.kwargs = kwargs
        self.arguments: dict[str, Any] = dict(zip(signature.arguments, args, strict=False))
        if kwargs:
            given = {**self.arguments, **kwargs}
            self.arguments = {name: given[name] for name in signature.arguments if name in given}
        self.inputs = [(name, tensor) for name, value in self.arguments.items() for tensor in tensors_of(value)]
        self.results: Sequence[torch.Tensor] = ()
        self.new_results: Sequence[torch.Tensor] = ()
        self.only_views = self._changes_shape_only = signature.changes_shape_only
        self._sizes = {memory_of(tensor): storage_size(tensor) for _, tensor in self.inputs}

    def first(self) -> torch.Tensor:
        """The first tensor among the arguments.

        Raises:
            IndexError: there is none.
        """
        return self.inputs[0][1]

    def ran(self, results: Any) -> None:
        """Take the results."""
        self.results = tensors_of(results)
        if self.name != _LIFT:
            self.new_results = [tensor for tensor in self.results if memory_of(tensor) not in self._sizes]
        has_views = bool(self.results and not self.written and not self.new_results)
        self.only_views = self._changes_shape_only or has_views

    def allocated_sizes(self) -> list[int]:
        """Bytes of each storage that the operator allocated: those of its new results, and of arguments that grew."""
        sizes = list({memory_of(tensor): storage_size(tensor) for tensor in self.new_results}.values())
        if self.written:
            grown = {memory_of(tensor): storage_size(tensor) for name, tensor in self.inputs if name in self.written}
            sizes += [size for key, size in grown.items() if size > self._sizes.get(key, size)]
        return [size for size in sizes if size]


@cache
def signature_of(operator: Any) -> Signature:
    """The signature of an operator."""
    import torch

    schema = operator._schema  # noqa: SLF001  # torch has no other way to ask
    written = [argument for argument in schema.arguments if argument.alias_info and argument.alias_info.is_write]
    overwritten = (argument.name for argument in written if argument.is_out or argument.name == "out")
    return Signature(
        name=schema.name,
        arguments=tuple(argument.name for argument in schema.arguments),
        written=frozenset(argument.name for argument in written),
        overwritten=frozenset(overwritten),
        changes_shape_only=torch.Tag.inplace_view in operator.tags,
    )


def memory_of(tensor: torch.Tensor) -> int:
    """What two tensors have in common if they share memory, as views do. It is valid while they live.

    Storages are told apart by their objects, not by addresses: fake tensors have no addresses.
    """
    return storage_id(tensor) if _has_storage(tensor) else id(tensor)


def storage_size(tensor: torch.Tensor) -> int:
    """Bytes of the storage behind a tensor."""
    return tensor.untyped_storage().nbytes() if _has_storage(tensor) else _held_bytes(tensor)


def touched_bytes(tensor: torch.Tensor) -> int:
    """Bytes of the distinct numbers of a tensor: those that an expanded dimension repeats count once."""
    if not _has_storage(tensor):
        return _held_bytes(tensor)
    distinct = tensor.nbytes
    if not tensor.is_contiguous():
        distinct = tensor.itemsize
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
            distinct *= size if stride or not size else 1
    return min(distinct, storage_size(tensor))


def _has_storage(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a view of one storage; sparse, nested and oneDNN's tensors are not."""
    import torch

    return tensor.layout is torch.strided and not tensor.is_nested


def _held_bytes(tensor: torch.Tensor) -> int:
    """Bytes of a sparse tensor's indices and values; of others, those of all numbers."""
    import torch

    parts = {
        torch.sparse_coo: ("_indices", "_values"),
        torch.sparse_csr: ("crow_indices", "col_indices", "values"),
    }.get(tensor.layout)
    if parts is None:
        return tensor.numel() * tensor.itemsize
    return sum(getattr(tensor, part)().nbytes for part in parts)
