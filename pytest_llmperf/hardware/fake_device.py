"""A device that is not here: tensors on it have shapes, dtypes and a device, but neither values nor memory.

torch's ``FakeTensorMode`` runs the real code of a model up to each operator, of which it computes only the result's
shape. This module adds what code asks a device for (compute capability, memory), the kernel that attention chooses,
the bytes of live tensors, and errors that name the line of code where it cannot go on.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from pytest_llmperf.errors import MeasurementError
from pytest_llmperf.hardware.data_sheet import DataSheet
from pytest_llmperf.hardware.device import torch_device
from pytest_llmperf.hardware.fake_operator_check import OperatorCheck
from pytest_llmperf.hardware.fused_attention import choosing_attention
from pytest_llmperf.hardware.known_values import LARGEST, KnownValues
from pytest_llmperf.hardware.live_bytes import LiveBytes
from pytest_llmperf.system.tensors import tensors_of
from pytest_llmperf.text import first_line

if TYPE_CHECKING:
    import torch

ALLOCATED_BLOCK_BYTES = 512
"""torch's caching allocator rounds sizes up to multiples of this."""
_STANCE = "fail_on_recompile"
_PACKAGE = Path(__file__).parents[1]
_NO_IMPLEMENTATION = "has no fake implementation, which computes the shape of its result (torch.library.register_fake)"


class NoValuesError(MeasurementError):
    """Code on a fake device needs a value or an operator that it does not have; the message names the line."""


class FakeDevice:
    """A fake device; one for each process, because tensors of two of them cannot meet.

    Args:
        name: ``fake-cpu``, ``fake-cuda`` or ``fake-xpu``.
        sheet: what is known of the GPU that it stands for; ``None`` if nothing.

    Attributes:
        live: Bytes of the live tensors on the device.
        waits: The lines at which the host waited for a copy from or to the device, one for each time.
    """

    def __init__(self, name: str, sheet: DataSheet | None = None) -> None:
        self.name = name
        self.sheet = sheet
        self.torch_device = torch_device(name)
        self.kind = self.torch_device.partition(":")[0]
        self.live = LiveBytes(self.kind, 1 if self.kind == "cpu" else ALLOCATED_BLOCK_BYTES)
        self.waits: list[str] = []
        self.check = OperatorCheck() if self.kind == "cpu" else None

    @contextmanager
    def computing(self) -> Iterator[None]:
        """In the block, new tensors are fake, and code that asks for the GPU gets the data sheet's answers."""
        with ExitStack() as stack:
            if self.kind == "cuda" and self.sheet:
                stack.enter_context(_answering(self.sheet))
                stack.enter_context(choosing_attention(self.sheet.capability))
            stack.enter_context(self._fake_mode)
            stack.enter_context(_operators_of(self))
            yield

    def place(self, tensor: torch.Tensor) -> torch.Tensor:
        """A fake tensor on the device, whose values are known. Call it inside ``computing``."""
        fake = self._like(tensor)
        self._known.know(fake, tensor)
        return fake

    def run(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run an operator that is not composed of others.

        Raises:
            NoValuesError: its result depends on values that are not known, or it has no fake implementation.
            MeasurementError: its fake implementation is wrong.
        """
        try:
            result = _corrected(func, args, func(*args, **kwargs))
        except _refusals() as error:
            result = self._read(func, args, kwargs, error)
        else:
            if sum(tensor.numel() for tensor in tensors_of(result)) <= LARGEST:
                real = self._known.compute(func, args, kwargs)
            else:
                real = NotImplemented
            if real is NotImplemented:
                self._known.forget_written(func, args, kwargs)
            else:
                self._known.know(result, real)
        self.live.follow(tensors_of(result))
        if _is_wait(func, args, kwargs, result):
            self.waits.append(calling_line())
        if self.check:
            self.check(func, args, kwargs, result)
        return result

    def _read(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], error: Exception) -> Any:
        """The result of an operator that depends on values, if they are known."""
        from torch.utils._pytree import tree_map_only

        real = self._known.compute(func, args, kwargs)
        if real is NotImplemented:
            raise _explained(func, error) from error
        if self.kind != "cpu" and any(tensor.device.type == self.kind for tensor in tensors_of((args, kwargs))):
            self.waits.append(calling_line())
        result = tree_map_only(_tensor_class(), self._like, real)
        self._known.know(result, real)
        return result

    def _like(self, tensor: torch.Tensor) -> torch.Tensor:
        import torch

        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=self.torch_device)

    @cached_property
    def _known(self) -> KnownValues:
        return KnownValues()

    @cached_property
    def _fake_mode(self) -> Any:
        from torch._subclasses.fake_tensor import FakeTensorMode

        return FakeTensorMode(allow_fallback_kernels=False, allow_non_fake_inputs=True)


@contextmanager
def with_values() -> Iterator[None]:
    """In the block, new tensors have values, even inside ``FakeDevice.computing``."""
    from torch.utils._python_dispatch import _disable_current_modes

    with _disable_current_modes():
        yield


@contextmanager
def refusing_compiled() -> Iterator[None]:
    """In the block, calling a function that ``torch.compile`` made is an error: it would run as if it was not compiled.

    Raises:
        NoValuesError: one was called.
    """
    import torch

    with torch.compiler.set_stance(_STANCE):
        try:
            yield
        except RuntimeError as error:
            found = re.search(r"filename: '(.*?)', function name: '(.*?)', line number: (\d+)", str(error))
            if _STANCE not in str(error) or not found:
                raise
            path, function, line = found.groups()
            raise NoValuesError(
                f"function {function!r} at {_shown(Path(path))}:{line} is compiled by torch.compile, whose operators a "
                "fake device does not dispatch one by one: count the model before it is compiled"
            ) from error


@contextmanager
def _answering(sheet: DataSheet) -> Iterator[None]:
    """Answer for CUDA's driver, which may not be here."""
    import torch

    major, minor = sheet.capability
    properties = SimpleNamespace(
        name=f"fake {sheet.name}", major=major, minor=minor, total_memory=sheet.memory_bytes, gcnArchName=""
    )
    answers = {
        "get_device_capability": sheet.capability,
        "get_device_properties": properties,
        "get_device_name": properties.name,
        "current_device": 0,
        "mem_get_info": (sheet.memory_bytes, sheet.memory_bytes),
    }
    with ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(patch.object(torch.cuda, name, lambda *_, answer=answer, **__: answer))
        yield


def _operators_of(device: FakeDevice) -> Any:
    """A dispatch mode that follows what operators do on a fake device.

    A composite operator is run as its parts, so that tensors between them are followed too.
    """
    from torch.utils._python_dispatch import TorchDispatchMode

    class Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]  # untyped in torch
        def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if func.namespace == "prim":
                return func(*args, **kwargs)
            with self:
                parts = func.decompose(*args, **kwargs)
            return device.run(func, args, kwargs) if parts is NotImplemented else parts

    return Operators()  # type: ignore[no-untyped-call]  # untyped in torch


def _explained(func: Any, error: Exception) -> NoValuesError:
    """Why an operator cannot run on a fake device."""
    from torch._subclasses import fake_tensor

    line, name = calling_line(), f"{func.namespace}::{func.overloadpacket.__name__}"
    if isinstance(error, fake_tensor.DataDependentOutputException):
        return NoValuesError(f"{line} reads a value back ({name}), and a fake device has none")
    if isinstance(error, fake_tensor.DynamicOutputShapeException):
        return NoValuesError(f"{line} makes a tensor whose shape depends on values ({name}): a fake device has none")
    if isinstance(error, fake_tensor.UnsupportedFakeTensorException):
        return NoValuesError(f"operator {name} at {line}: {first_line(error)}")
    return NoValuesError(f"operator {name} {_NO_IMPLEMENTATION}: called at {line}")


def _refusals() -> tuple[type[Exception], ...]:
    """What torch raises for an operator that it cannot run without values."""
    from torch._subclasses import fake_tensor

    return (
        fake_tensor.DataDependentOutputException,
        fake_tensor.DynamicOutputShapeException,
        fake_tensor.UnsupportedOperatorException,
        fake_tensor.UnsupportedFakeTensorException,
        NotImplementedError,
    )


def _corrected(func: Any, args: Sequence[Any], result: Any) -> Any:
    """A result with the strides that the real kernel gives it, where torch's fake implementation says otherwise.

    Attention on a CPU keeps the query's, also of dimensions of size 1. By them, torch 2.13 chooses how to multiply the
    result.
    """
    import torch

    if func is not torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default:  # noqa: SLF001  # torch's name
        return result
    query, (output, *others) = args[0], result
    spanned = 1 + sum((size - 1) * stride for size, stride in zip(query.shape, query.stride(), strict=True))
    if spanned != query.numel():  # its memory has gaps, which the result has not
        return result
    return torch.empty_strided(query.shape, query.stride(), dtype=output.dtype, device=output.device), *others


def _is_wait(func: Any, args: Any, kwargs: Mapping[str, Any], result: Any) -> bool:
    """Whether the host waits for a copy: memory of the host is pageable here, and empty tensors are not copied."""
    if func.overloadpacket.__name__ not in ("_to_copy", "copy_") or result.numel() == 0 or kwargs.get("non_blocking"):
        return False
    return len({tensor.device.type for tensor in tensors_of((args, result))}) > 1


def _tensor_class() -> type[torch.Tensor]:
    import torch

    return torch.Tensor


def calling_line() -> str:
    """The innermost line of code outside torch and this package: ``transformers/cache_utils.py:220``."""
    import torch

    hidden = (Path(torch.__file__).parent, _PACKAGE)
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if path.is_absolute() and not any(folder in path.parents for folder in hidden):
            return f"{_shown(path)}:{frame.lineno}"
    return "an unknown line"


def _shown(path: Path) -> str:
    """A path without this machine's folders: relative to where packages are installed, else its last two parts."""
    parts = path.parts
    if "site-packages" in parts:
        return "/".join(parts[parts.index("site-packages") + 1 :])
    return "/".join(parts[-2:])
