"""Values of small fake tensors that depend on no weights: positions, masks, and what follows from the prompt.

Code reads such values back to choose what to do. They are computed beside the fake tensors, on the CPU, so that it
chooses as it does on a device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from pytest_llmperf.system.tensors import is_without_values, storage_id, tensors_of

if TYPE_CHECKING:
    import torch

LARGEST = 1 << 20
"""Numbers in a tensor whose values are kept: some megabytes."""
_WITHOUT_VALUES = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "empty_permuted")
"""Operators whose results have no values until they are written."""


class KnownValues:
    """Values by fake tensor, as long as the tensor lives."""

    def __init__(self) -> None:
        from torch.utils.weak import WeakTensorKeyDictionary

        self._values: Any = WeakTensorKeyDictionary()

    def know(self, fake: Any, real: Any) -> None:
        """Keep the values of a fake tensor, or of each in a structure of them, unless there are too many."""
        for one, value in zip(tensors_of(fake), tensors_of(real), strict=True):
            if is_without_values(one) and value.numel() <= LARGEST:
                self._values[one] = value

    def compute(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What an operator returns for the values of its arguments; ``NotImplemented`` if one is not known."""
        import torch
        from torch.utils._python_dispatch import _disable_current_modes
        from torch.utils._pytree import tree_map

        given = [*tensors_of((args, kwargs))]
        if not (all(map(self._is_known, given)) if given else _makes_values(func)):
            return NotImplemented
        args, kwargs = tree_map(self._real, (tuple(args), dict(kwargs)))
        with _disable_current_modes(), torch.inference_mode():
            try:
                return func(*args, **kwargs)
            except RuntimeError:  # it has no kernel on a CPU
                return NotImplemented

    def forget_written(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Forget the values of what an operator wrote to, and of all tensors that share its memory."""
        if not func._schema.is_mutable or not self._values:  # noqa: SLF001  # torch has no other way to ask
            return
        given = [tensor for tensor in tensors_of((args, kwargs)) if is_without_values(tensor)]
        memory = {storage_id(tensor) for tensor in given}
        for known in [*self._values]:
            if storage_id(known) in memory:
                del self._values[known]

    def _is_known(self, tensor: torch.Tensor) -> bool:
        return tensor in self._values if is_without_values(tensor) else tensor.numel() <= LARGEST

    def _real(self, value: Any) -> Any:
        """An argument with values, on the CPU."""
        import torch

        if isinstance(value, torch.device):
            return torch.device("cpu")
        return self._values[value] if isinstance(value, torch.Tensor) and is_without_values(value) else value


@cache
def _makes_values(func: Any) -> bool:
    """Whether an operator without tensors among its arguments makes the same values each time."""
    import torch

    random = torch.Tag.nondeterministic_seeded in func.tags
    return not random and func.overloadpacket.__name__ not in _WITHOUT_VALUES
