"""bitsandbytes kernels at the shapes of an 8B Llama's projections, timed without a model.

Since bitsandbytes 0.50, 4-bit layers run ``gemm_4bit``. Older ones run ``gemv_4bit`` for one token and
``dequantize_4bit`` for more. 8-bit layers run ``int8_vectorwise_quant`` and then ``int8_scaled_mm``, or
``int8_mixed_scaled_mm`` if a threshold separates outliers.

Run it by its name: ``pytest --llmperf --pyargs pytest_llmperf.suite.kernels``. The suite as a whole, which measures a
model, leaves it out, because pytest does not collect a file of this name by itself.
"""

from __future__ import annotations

from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pytest

from pytest_llmperf import Timing
from pytest_llmperf.models.quantized_layers import repacks_4bit
from pytest_llmperf.text import first_line

if TYPE_CHECKING:
    import torch

    from pytest_llmperf import KernelTimer

SHAPES = [(4096, 4096), (14336, 4096)]
"""Output and input features of a weight."""
LIMITS_DTYPE = "bfloat16"
OUTLIERS = 6
"""Columns that are multiplied unquantized: models have up to seven (Dettmers et al., 2022)."""
INT8_KERNELS = ("int8_linear_matmul", "int8_mm_dequant")
"""Kernels that ``int8_scaled_mm`` and ``int8_mixed_scaled_mm`` run."""
INT8_FULL = 127

tokens_of_a_step = pytest.mark.parametrize("tokens", [1, 8, 64])
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
    if cuda_timer.device == "cpu" and repacks_4bit():
        packed, state = functional._convert_weight_packed_for_cpu(packed, state)  # noqa: SLF001  # as layers do
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
@tokens_of_a_step
@pytest.mark.parametrize("quantization", ["nf4", "nf4-dq"])
def test_gemm_4bit(  # noqa: PLR0913, PLR0917  # pytest passes one for each axis
    cuda_timer: KernelTimer, request: pytest.FixtureRequest, quantization: str, tokens: int, rows: int, columns: int
) -> None:
    functional, nested = _kernels("gemm_4bit", cuda_timer.device), quantization == "nf4-dq"
    packed, state, weight = _quantized(functional, "nf4", rows, columns, cuda_timer.device, nested=nested)
    inputs = _random(tokens, columns, cuda_timer.device)
    expected = inputs @ weight.t()
    scales = {"absmax": state.absmax}
    if nested:  # as a layer passes them
        scales = {"absmax": state.state2.absmax, "absmax_8bit": state.absmax, "absmax_code": state.state2.code}
        scales["absmax_offset"] = state.offset
    options = {"shapeB": [rows, columns], "blocksize": state.blocksize, "quant_type": "nf4", **scales}
    multiply = partial(_operator("gemm_4bit"), inputs, packed, **options)
    _check(multiply(), expected)
    timing = cuda_timer(multiply, flush_l2=True, name="gemm_4bit")
    _record(request, cuda_timer, timing, packed, state.absmax, inputs, expected)


@weights
@tokens_of_a_step
def test_int8_scaled_mm(
    cuda_timer: KernelTimer, request: pytest.FixtureRequest, tokens: int, rows: int, columns: int
) -> None:
    import torch

    functional = _kernels("int8_scaled_mm", cuda_timer.device, runs=INT8_KERNELS)
    left, left_scales = _quantized_int8(functional, tokens, columns, cuda_timer.device)
    right, right_scales = _quantized_int8(functional, rows, columns, cuda_timer.device)
    multiply = partial(
        _operator("int8_scaled_mm"), left, right, left_scales, right_scales, bias=None, dtype=torch.bfloat16
    )
    product = multiply()
    _check(product, _dequantized(left, left_scales) @ _dequantized(right, right_scales).t())
    timing = cuda_timer(multiply, flush_l2=True, name="int8_scaled_mm")
    _record(request, cuda_timer, timing, left, right, product)


@weights
@tokens_of_a_step
def test_int8_mixed_scaled_mm(
    cuda_timer: KernelTimer, request: pytest.FixtureRequest, tokens: int, rows: int, columns: int
) -> None:
    import torch

    functional = _kernels("int8_mixed_scaled_mm", cuda_timer.device, runs=INT8_KERNELS)
    left, left_scales = _quantized_int8(functional, tokens, columns, cuda_timer.device)
    right, right_scales = _quantized_int8(functional, rows, columns, cuda_timer.device)
    inputs, outliers = _dequantized(left, left_scales).bfloat16(), torch.arange(OUTLIERS, device=cuda_timer.device)
    left[:, outliers] = 0  # as quantization does
    multiply = partial(
        _operator("int8_mixed_scaled_mm"), inputs, left, right, left_scales, right_scales, outliers, None
    )
    product, _ = multiply()
    _check(product, inputs.float() @ _dequantized(right, right_scales).t())
    timing = cuda_timer(multiply, flush_l2=True, name="int8_mixed_scaled_mm")
    _record(request, cuda_timer, timing, left, right, product)


@tokens_of_a_step
def test_int8_vectorwise_quant(cuda_timer: KernelTimer, request: pytest.FixtureRequest, tokens: int) -> None:
    functional = _kernels("int8_vectorwise_quant", cuda_timer.device)
    inputs = _random(tokens, SHAPES[0][1], cuda_timer.device).half()
    quantized, scales, _ = functional.int8_vectorwise_quant(inputs)
    _check(_dequantized(quantized, scales), inputs)
    timing = cuda_timer(functional.int8_vectorwise_quant, inputs, flush_l2=True)
    _record(request, cuda_timer, timing, inputs, quantized)


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


def _kernels(name: str, device: str, *, runs: tuple[str, ...] = ()) -> Any:
    """Return ``bitsandbytes.functional``; skip if the device has no own kernel of an operator, or of all that it runs.

    Otherwise a fallback of torch's own operators would run.
    """
    functional = pytest.importorskip("bitsandbytes.functional")
    found, kind = f"bitsandbytes {version('bitsandbytes')}", device.partition(":")[0]
    if _operator(name) is None:
        pytest.skip(f"{found} has no operator {name}")
    lacking = [part for part in runs or (name,) if not _has_kernel(part, kind)]
    if lacking and not _has_kernel(name, kind):
        of = f", which {name} runs" if runs else ""
        pytest.skip(f"{found} has no {kind} kernel of {' and '.join(lacking)} here{of}")
    return functional


def _operator(name: str) -> Any:
    """Return bitsandbytes' operator as torch dispatches it; ``None`` if this version has none of that name."""
    import torch

    packet = getattr(torch.ops.bitsandbytes, name, None)
    return packet and packet.default


def _has_kernel(name: str, kind: str) -> bool:
    """Whether torch has a kernel of the operator for this kind of device alone. torch has no public API for it."""
    import torch

    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(f"bitsandbytes::{name}", kind.upper()))  # noqa: SLF001


def _quantized(  # noqa: PLR0913  # one for each property of a weight
    functional: Any, quant_type: str, rows: int, columns: int, device: str, *, nested: bool = False
) -> tuple[torch.Tensor, Any, torch.Tensor]:
    """Return packed weights, their state and the dequantized weights; if nested, the scales are quantized as well."""
    weight = _random(rows, columns, device)
    options = {"quant_type": quant_type, "blocksize": 64, "compress_statistics": nested}
    try:
        packed, state = functional.quantize_4bit(weight, **options)
    except RuntimeError as error:
        if "quant_type" not in str(error):
            raise
        pytest.skip(f"bitsandbytes {version('bitsandbytes')}: {first_line(error)}")
    return packed, state, functional.dequantize_4bit(packed, state)


def _quantized_int8(functional: Any, rows: int, columns: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows in int8, and the value that 127 stands for in each."""
    quantized, scales, _ = functional.int8_vectorwise_quant(_random(rows, columns, device).half())
    return quantized, scales


def _dequantized(quantized: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return quantized.float() * scales[:, None].float() / INT8_FULL


def _random(rows: int, columns: int, device: str) -> torch.Tensor:
    import torch

    return torch.randn(rows, columns, dtype=torch.bfloat16, device=device)


def _small_int8(rows: int, columns: int, device: str) -> torch.Tensor:
    """Return small integers, whose products are exact in float32."""
    import torch

    return torch.randint(-8, 8, (rows, columns), dtype=torch.int8, device=device)


def _check(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Check the timed call's result, to the precision of bfloat16."""
    import torch

    error = torch.linalg.vector_norm((found - expected).float()) / torch.linalg.vector_norm(expected.float())
    assert error < 0.02  # noqa: S101, PLR2004  # a test


def _record(request: pytest.FixtureRequest, timer: KernelTimer, timing: Timing, *moved: torch.Tensor) -> None:
    """Add the values to the JUnit file; the run's summary shows them in a line.

    ``record_property`` is not used: it warns if the file is of the family ``xunit2``.
    """
    reached = timing.roofline(limits=timer.limits(LIMITS_DTYPE), bytes_moved=sum(tensor.nbytes for tensor in moved))
    found = {"median_ms": timing.median_ms, "flushed_l2": timing.flushed_l2, "copy_share": reached.copy_share}
    if timing.graph_used:
        found["graph_median_ms"] = timing.graph_median_ms
    request.node.user_properties += found.items()
