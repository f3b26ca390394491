"""Memory size of a model's weights."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

from pytest_llmperf.models.quantized_weights import quant_state_of
from pytest_llmperf.system.tensors import storage_bytes

if TYPE_CHECKING:
    import torch

_QUANT_STATE = ("absmax", "code", "offset")  # bitsandbytes, 4 bit
_INT8_STATE = ("CB", "SCB")  # bitsandbytes, 8 bit: on the weight until the first forward, then on the module's state


def weights_bytes(model: torch.nn.Module) -> int:
    """Bytes of a model's parameters, buffers and bitsandbytes quantization state.

    Shared storage counts once, and a wrapper tensor counts by the tensors inside it.
    """
    return storage_bytes(_tensors(model))


def _tensors(model: torch.nn.Module) -> Iterator[torch.Tensor]:
    yield from chain(model.parameters(), model.buffers())
    for module in model.modules():
        weight = getattr(module, "weight", None)
        yield from _attributes(weight, _INT8_STATE)
        yield from _attributes(getattr(module, "state", None), _INT8_STATE)
        yield from _of_state(getattr(weight, "quant_state", None))
        yield from _of_state(quant_state_of(module))


def _of_state(quant_state: Any) -> Iterator[torch.Tensor]:
    while quant_state is not None:  # double quantization nests a second state
        yield from _attributes(quant_state, _QUANT_STATE)
        quant_state = getattr(quant_state, "state2", None)


def _attributes(owner: Any, names: tuple[str, ...]) -> Iterator[torch.Tensor]:
    import torch

    values = (getattr(owner, name, None) for name in names)
    return (value for value in values if isinstance(value, torch.Tensor))
