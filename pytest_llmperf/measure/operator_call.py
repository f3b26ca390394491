"""One call of an operator of torch: its arguments and results, and whose memory they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from pytest_llmperf.system.tensors import storage_id, tensors_of

if TYPE_CHECKING:
    import torch


_LIFT = "aten::lift_fresh"
"""Returns its argument, the tensor of a constant. Only where tensors are fake is that another tensor."""


class OperatorCall:
    """The arguments of one call, taken before it runs, and its results, once it has run.

    It holds tensors, so it must not outlive the call.
    """

    def __init__(self, operator: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self.operator = operator
        self.name = operator_name(operator)
        self.args = args
        self.kwargs = kwargs
        names, self.written, self.overwritten, self._changes_shape_only = _signature(operator)
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        self.arguments: dict[str, Any] = {name: given[name] for name in names if name in given}
        """Arguments by name, in the order of the operator's schema; those with default values are absent."""
        self.results: list[torch.Tensor] = []
        self._sizes = {memory_of(tensor): storage_size(tensor) for _, tensor in self.inputs()}

    def inputs(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Tensors among the arguments, those in lists included, with the arguments' names."""
        for name, value in self.arguments.items():
            for tensor in tensors_of(value):
                yield name, tensor

    def first(self) -> torch.Tensor:
        """The first tensor among the arguments.

        Raises:
            StopIteration: there is none.
        """
        return next(tensor for _, tensor in self.inputs())

    def ran(self, results: Any) -> None:
        """Take the results."""
        self.results = list(tensors_of(results))

    @property
    def new_results(self) -> list[torch.Tensor]:
        """Results in memory of their own. Others are arguments that the operator wrote to, or views of arguments."""
        if self.name == _LIFT:
            return []
        return [tensor for tensor in self.results if memory_of(tensor) not in self._sizes]

    @property
    def only_views(self) -> bool:
        """Whether the operator touched no numbers: its results are views, or it only changed an argument's shape."""
        return self._changes_shape_only or bool(self.results and not self.written and not self.new_results)

    def allocated_sizes(self) -> list[int]:
        """Bytes of each storage that the operator allocated: those of its new results, and of arguments that grew."""
        new = {memory_of(tensor): storage_size(tensor) for tensor in self.new_results}
        grown = {memory_of(tensor): storage_size(tensor) for name, tensor in self.inputs() if name in self.written}
        sizes = [*new.values(), *(size for key, size in grown.items() if size > self._sizes.get(key, size))]
        return [size for size in sizes if size]


def operator_name(operator: Any) -> str:
    """Name of an operator without its overload, such as ``aten::add``."""
    name: str = operator._schema.name  # noqa: SLF001  # torch has no other way to ask
    return name


@cache
def _signature(operator: Any) -> tuple[tuple[str, ...], frozenset[str], frozenset[str], bool]:
    """Names of all arguments, of those written to, of those only written to, and whether only a shape changes."""
    import torch

    arguments = operator._schema.arguments  # noqa: SLF001  # torch has no other way to ask
    written = [argument for argument in arguments if argument.alias_info and argument.alias_info.is_write]
    overwritten = (argument.name for argument in written if argument.is_out or argument.name == "out")
    return (
        tuple(argument.name for argument in arguments),
        frozenset(argument.name for argument in written),
        frozenset(overwritten),
        torch.Tag.inplace_view in operator.tags,
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
