"""bitsandbytes' kernels at the shapes of an 8B Llama's projections, timed alone: no model is loaded.

Run it by its name: ``pytest --llmperf --pyargs pytest_llmperf.suite.kernels``. The suite as a whole, which measures a
model, leaves it out: it is no file that pytest collects by itself.
"""

from __future__ import annotations

from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pytest

from pytest_llmperf.measure.timing import Timing

if TYPE_CHECKING:
    import torch

    from pytest_llmperf.measure.timer import KernelTimer

SHAPES = [(4096, 4096), (14336, 4096)]
"""Output and input features of a weight."""
LIMITS_DTYPE = "bfloat16"

weights = pytest.mark.parametrize(("rows", "columns"), SHAPES, ids=str)


@weights
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_gemv_4bit(
    cuda_timer: KernelTimer, request: pytest.FixtureRequest, quant_type: str, rows: int, columns: int
) -> None:
    functional = _kernels("gemv_4bit", cuda_timer.device)
    packed, state, weight = _quantized(functional, quant_type, rows, columns, cuda_timer.device)
    vector = _random(1, columns, cuda_timer.device)
    expected = vector @ weight.t()
    if cuda_timer.device == "cpu":  # its kernel reads another layout, which a layer changes to before inference
        packed, state = functional._convert_weight_packed_for_cpu(packed, state)  # noqa: SLF001  # as a layer does
    multiply = partial(functional.gemv_4bit, vector, packed.t(), state=state)
    _check(multiply(), expected)
    timing = cuda_timer(multiply, flush_l2=True)
    _record(request, cuda_timer, timing, packed, state.absmax, vector, expected)


@weights
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_dequantize_4bit(
    cuda_timer: KernelTimer, request: pytest.FixtureRequest, quant_type: str, rows: int, columns: int
) -> None:
    functional = _kernels("dequantize_4bit", cuda_timer.device)
    packed, state, weight = _quantized(functional, quant_type, rows, columns, cuda_timer.device)
    timing = cuda_timer(functional.dequantize_4bit, packed, state, flush_l2=True)
    _record(request, cuda_timer, timing, packed, state.absmax, weight)


@weights
@pytest.mark.parametrize("tokens", [8, 128])
def test_int8_linear_matmul(
    cuda_timer: KernelTimer, request: pytest.FixtureRequest, tokens: int, rows: int, columns: int
) -> None:
    functional = _kernels("int8_linear_matmul", cuda_timer.device)
    left, right = _small_int8(tokens, columns, cuda_timer.device), _small_int8(rows, columns, cuda_timer.device)
    product = functional.int8_linear_matmul(left, right)
    _check(product.float(), left.float() @ right.float().t())
    timing = cuda_timer(functional.int8_linear_matmul, left, right, flush_l2=True)
    _record(request, cuda_timer, timing, left, right, product)


def _kernels(name: str, device: str) -> Any:
    """``bitsandbytes.functional``, where the device has a kernel of its own of that name."""
    import torch

    functional = pytest.importorskip("bitsandbytes.functional")
    kind = device.partition(":")[0]
    # torch has no public way to ask. What would run otherwise is a fallback made of torch's own operators.
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"bitsandbytes::{name}", kind.upper()):  # noqa: SLF001
        pytest.skip(f"bitsandbytes {version('bitsandbytes')} has no {kind} kernel of {name} here")
    return functional


def _quantized(
    functional: Any, quant_type: str, rows: int, columns: int, device: str
) -> tuple[torch.Tensor, Any, torch.Tensor]:
    """Packed weights, their state, and the weights that they stand for."""
    packed, state = functional.quantize_4bit(_random(rows, columns, device), quant_type=quant_type, blocksize=64)
    return packed, state, functional.dequantize_4bit(packed, state)


def _random(rows: int, columns: int, device: str) -> torch.Tensor:
    import torch

    return torch.randn(rows, columns, dtype=torch.bfloat16, device=device)


def _small_int8(rows: int, columns: int, device: str) -> torch.Tensor:
    """Products of these are exact in float32."""
    import torch

    return torch.randint(-8, 8, (rows, columns), dtype=torch.int8, device=device)


def _check(found: torch.Tensor, expected: torch.Tensor) -> None:
    """What is timed computes what it is for, to the precision of bfloat16."""
    import torch

    error = torch.linalg.vector_norm((found - expected).float()) / torch.linalg.vector_norm(expected.float())
    assert error < 0.02  # noqa: S101, PLR2004  # a test


def _record(request: pytest.FixtureRequest, timer: KernelTimer, timing: Timing, *moved: torch.Tensor) -> None:
    """Keep the figures in JUnit's file; the run's summary tells them in a line.

    Not by ``record_property``, which warns where the file is to be of the family ``xunit2``.
    """
    reached = timing.roofline(limits=timer.limits(LIMITS_DTYPE), bytes_moved=sum(tensor.nbytes for tensor in moved))
    found = {"median_ms": timing.median_ms, "flushed_l2": timing.flushed_l2, "copy_share": reached.copy_share}
    if timing.graph_used:
        found["graph_median_ms"] = timing.graph_median_ms
    request.node.user_properties += found.items()
