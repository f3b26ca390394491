"""Roofline limits of a device: peak copy bandwidth and matrix product rate, measured by the kernel timer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pytest_llmperf.errors import UsageError
from pytest_llmperf.hardware.clock import MS_PER_S
from pytest_llmperf.measure.kernel_timing import Timing

if TYPE_CHECKING:
    import torch

COPIED_BYTES = {"cpu": 64 << 20}
ACCELERATOR_COPIED_BYTES = 512 << 20
"""Several times the size of the caches, so that the copy runs at memory speed."""
MATRIX_SIZE = {"cpu": 512}
ACCELERATOR_MATRIX_SIZE = 8192
"""Rows and columns of the matrices: large enough that the product is compute-bound."""
SAMPLES = {"repetitions": 10, "graph_repetitions": 1}
"""A fixed number of samples: the fastest of more samples is faster, so limits of two runs need equal numbers."""


def copy_rate(timer: Callable[..., Timing], device: str) -> float:
    """Bytes per second that a copy reads and writes.

    Args:
        timer: times a callable on the device.
        device: the torch device.
    """
    import torch

    size = COPIED_BYTES.get(device, ACCELERATOR_COPIED_BYTES)
    # Not zeros: on a host, zeroed memory maps one page repeatedly, which is read from the cache.
    source = torch.full((size,), 1, dtype=torch.uint8, device=device)
    return 2 * size / _seconds(timer(torch.empty_like(source).copy_, source, **SAMPLES))


def matrix_rate(timer: Callable[..., Timing], device: str, dtype: str) -> float:
    """Operations per second of a matrix product; a multiply-add counts as two.

    Args:
        timer: times a callable on the device.
        device: the torch device.
        dtype: a floating dtype of torch, such as ``bfloat16``, or ``int8``.

    Raises:
        UsageError: ``dtype`` is another one.
    """
    import torch

    found, size = _multiplied_dtype(dtype), MATRIX_SIZE.get(device, ACCELERATOR_MATRIX_SIZE)
    largest, product = (127, torch._int_mm) if found is torch.int8 else (1, torch.mm)  # noqa: SLF001  # mm takes no int8
    left, right = (torch.rand(size, size, device=device).mul_(largest).to(found) for _ in range(2))
    return 2 * size**3 / _seconds(timer(product, left, right, **SAMPLES))


def _seconds(timing: Timing) -> float:
    """Seconds of the fastest sample: slower samples were disturbed and do not show the device's peak."""
    return min(timing.graph_samples_ms or timing.samples_ms) / MS_PER_S


def _multiplied_dtype(name: object) -> torch.dtype:
    import torch

    found = getattr(torch, name, None) if isinstance(name, str) else None
    if not isinstance(found, torch.dtype) or not (found.is_floating_point or found is torch.int8):
        raise UsageError(f"dtype={name!r}: expected a floating dtype of torch, such as 'bfloat16', or 'int8'")
    return found
