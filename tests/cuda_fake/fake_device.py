"""Real models on a CUDA device that is made up: torch's fake tensors have a shape and a device, and no values.

A step takes the branches that transformers and bitsandbytes have for CUDA, and stops where it asks for a value.
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
from pytest_llmperf.engines.executions.execution import greedy_loop
from pytest_llmperf.hardware.clock import HostClock

DEVICE = "cuda:0"
KEPT_BY_WEIGHTS = "quant_state", "CB", "SCB"
"""What bitsandbytes keeps in attributes of its quantized weights."""
NEEDS_VALUES = DataDependentOutputException, DynamicOutputShapeException


class ReadBackError(Exception):
    """A step asks for a value, so that it cannot go on here; the message says which operator does, and where."""


@dataclass
class Step:
    """What was dispatched until a token was ready."""

    operators: list[str] = field(default_factory=list)
    waits: list[str] = field(default_factory=list)
    """Copies between host and device for which the host waits: the operator, and where it was called."""

    def kernels(self) -> Counter[str]:
        """How often each of bitsandbytes' operators and torch's matrix product were dispatched."""
        names = (operator.removesuffix(".default") for operator in self.operators)
        return Counter(name for name in names if name == "aten.mm" or name.startswith("bitsandbytes."))


class Watched(TorchDispatchMode):
    """Notes the operators of a block, token by token."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = [Step()]

    def token(self) -> None:
        """A token is ready."""
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
    """Memory of the host is pageable: a copy of it waits in either direction. Of nothing, nothing is copied."""
    copies = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default) and result.numel() > 0
    kinds = {tensor.device.type for tensor in tree_leaves((args, result)) if isinstance(tensor, torch.Tensor)}
    return copies and len(kinds) > 1 and not kwargs.get("non_blocking", False)


def caller() -> str:
    """The file, line and text of the innermost code that is neither torch's nor this file's."""
    here, torch_folder = Path(__file__), Path(torch.__file__).parent
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if path != here and torch_folder not in path.parents:
            return f"{path.parent.name}/{path.name}:{frame.lineno} `{frame.line}`"
    raise AssertionError("torch calls itself")


@contextmanager
def fake_device() -> Iterator[None]:
    """Tensors that are made in the block have no values, on any device."""
    with FakeTensorMode(), torch.no_grad():
        yield


def new_model(config: Any, attention: str = "sdpa") -> Any:
    """A model of this config, in a fake device's block."""
    from transformers import AutoModelForCausalLM

    with torch.device(DEVICE):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation=attention).eval()


def moved(model: Any) -> Any:
    """A model of the host, put on the fake device with all that bitsandbytes keeps beside its weights."""
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
    """Prefill and two steps of decode. The first request is another: models make some constants in it."""
    with Watched():
        greedy_loop(model, prompt(), 2, lambda: None)
    with Watched() as watched:
        greedy_loop(model, prompt(), 3, watched.token)
    return watched.steps[:-1]  # behind the last token, they are put together


def steps_of_graph(model: Any, monkeypatch: Any) -> list[Step]:
    """The steps that the execution captures for a batch of three: of four sequences, of two and of one.

    In the place of capturing, each runs once, and a replay does nothing.
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
