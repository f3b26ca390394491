"""Real models on a fake CUDA device: torch's fake tensors have a shape and a device, but no values.

A step takes the CUDA branches of transformers and bitsandbytes, and stops where it reads a value.
"""

from __future__ import annotations

import copy
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pytest_llmperf import Graph
from pytest_llmperf.engines.executions import graph
from pytest_llmperf.engines.executions.execution import unnoticed
from pytest_llmperf.engines.executions.greedy_loop import greedy_loop
from pytest_llmperf.hardware.clock import HostClock

DEVICE = "cuda:0"
KEPT_BY_WEIGHTS = "quant_state", "CB", "SCB"
"""Attributes of bitsandbytes' quantized weights."""
NEEDS_VALUES = DataDependentOutputException, DynamicOutputShapeException


class ReadBackError(Exception):
    """A step reads a value, which does not exist here; the message names the operator and the line of code."""


@dataclass
class Step:
    """Operators dispatched for one token."""

    operators: list[str] = field(default_factory=list)
    waits: list[str] = field(default_factory=list)
    """Blocking copies between host and device: the operator and its caller."""

    def kernels(self) -> Counter[str]:
        """Count the dispatched operators of bitsandbytes and matrix products of torch."""
        names = (operator.removesuffix(".default") for operator in self.operators)
        return Counter(name for name in names if name == "aten.mm" or name.startswith("bitsandbytes."))


class Watched(TorchDispatchMode):
    """Records the operators of a block, token by token."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = [Step()]

    def token(self) -> None:
        """Begin the next token's step."""
        self.steps.append(Step())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        step, kwargs = self.steps[-1], kwargs or {}
        step.operators.append(str(func))
        try:
            result = func(*args, **kwargs)
        except NEEDS_VALUES as error:
            raise ReadBackError(f"{func} at {caller()}") from error
        if _copies_and_waits(func, args, kwargs, result):
            step.waits.append(f"{func} at {caller()}")
        return result


def _copies_and_waits(func: Any, args: Any, kwargs: dict[str, Any], result: Any) -> bool:
    """Whether this is a blocking copy: host memory is pageable here, and empty tensors are not copied."""
    copies = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default) and result.numel() > 0
    kinds = {tensor.device.type for tensor in tree_leaves((args, result)) if isinstance(tensor, torch.Tensor)}
    return copies and len(kinds) > 1 and not kwargs.get("non_blocking", False)


def caller() -> str:
    """Return file, line and text of the innermost code outside torch and this file."""
    here, torch_folder = Path(__file__), Path(torch.__file__).parent
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if path != here and torch_folder not in path.parents:
            return f"{path.parent.name}/{path.name}:{frame.lineno} `{frame.line}`"
    raise AssertionError("torch calls itself")


@contextmanager
def fake_device() -> Iterator[None]:
    """Tensors created in the block have no values, on any device."""
    with FakeTensorMode(), torch.no_grad():
        yield


def new_model(config: Any, attention: str = "sdpa") -> Any:
    """Create a model of this config, inside a fake device's block."""
    from transformers import AutoModelForCausalLM

    with torch.device(DEVICE):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation=attention).eval()


def moved(model: Any) -> Any:
    """Move a model from the host to the fake device, including the state that bitsandbytes keeps with its weights."""
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            tensors.update({name: _moved(tensor) for name, tensor in tensors.items() if tensor is not None})
    return model


def _moved(value: Any) -> Any:
    from bitsandbytes.functional import QuantState

    if isinstance(value, torch.Tensor):
        fake = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=DEVICE)
        vars(fake).update({name: _moved(part) for name, part in vars(value).items() if name in KEPT_BY_WEIGHTS})
        return fake
    if isinstance(value, QuantState):
        state = copy.copy(value)
        vars(state).update({name: _moved(part) for name, part in vars(value).items()})
        return state
    return value


def prompt(batch_size: int = 3) -> torch.Tensor:
    return torch.zeros(batch_size, 8, dtype=torch.long, device=DEVICE)


def steps_of_loop(model: Any) -> list[Step]:
    """Return prefill and two decode steps. A first request is not recorded, because models create constants in it."""
    with Watched():
        greedy_loop(model, prompt(), 2, unnoticed)
    with Watched() as watched:
        greedy_loop(model, prompt(), 3, watched.token)
    return watched.steps[:-1]  # the loop concatenates the tokens after the last one


def steps_of_graph(model: Any, monkeypatch: Any) -> list[Step]:
    """Return the steps that the execution captures for a batch of three: of four sequences, of two and of one.

    Instead of being captured, each step runs once; a replay does nothing.
    """
    steps: list[Step] = []

    @contextmanager
    def captured(_device: str, call: Callable[[], object], times: int, *, pool: object) -> Iterator[Any]:
        with Watched() as watched:
            call()
        steps.extend(watched.steps)
        yield SimpleNamespace(replay=lambda: None)

    monkeypatch.setattr(graph, "captured", captured)
    monkeypatch.setattr(graph, "Pool", SimpleNamespace(new=lambda: None))
    for name in ("_reserved_bytes", "_free_bytes"):
        monkeypatch.setattr(graph, name, lambda _device: 0)
    with Watched(), Graph(sizes=(1, 2, 4)).open(model, prompt(), 3, HostClock()):
        return steps
