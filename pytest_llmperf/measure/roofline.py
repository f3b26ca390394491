"""What a device can do at most, measured by the timer that times kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pytest_llmperf.errors import UsageError
from pytest_llmperf.measure.kernel_timing import MS_PER_S, Timing

if TYPE_CHECKING:
    import torch

COPIED_BYTES = {"cpu": 64 << 20}
ACCELERATOR_COPIED_BYTES = 512 << 20
"""Several times the caches, so that the copy runs at the speed of memory."""
MATRIX_SIZE = {"cpu": 512}
ACCELERATOR_MATRIX_SIZE = 8192
"""Rows and columns: enough that the product is bound by arithmetic."""
SAMPLES = {"repetitions": 10, "graph_repetitions": 1}
"""Of more samples the fastest one is faster: the limits of two runs come of equally many."""


def copy_rate(timer: Callable[..., Timing], device: str) -> float:
    """Bytes that a copy reads and writes, by second.

    Args:
        timer: times a callable on that device.
        device: as torch names it.
    """
    import torch

    size = COPIED_BYTES.get(device, ACCELERATOR_COPIED_BYTES)
    # Not zeros: on a host they are one page of zeros, mapped again and again, and read from the cache.
    source = torch.full((size,), 1, dtype=torch.uint8, device=device)
    return 2 * size / _seconds(timer(torch.empty_like(source).copy_, source, **SAMPLES))


def matrix_rate(timer: Callable[..., Timing], device: str, dtype: str) -> float:
    """Operations of a matrix product, by second; a multiplication and an addition are two.

    Args:
        timer: times a callable on that device.
        device: as torch names it.
        dtype: in torch's words, such as ``bfloat16``.

    Raises:
        UsageError: ``dtype`` is not a floating dtype of torch.
    """
    import torch

    found, size = _floating_dtype(dtype), MATRIX_SIZE.get(device, ACCELERATOR_MATRIX_SIZE)
    left, right = (torch.rand(size, size, device=device).to(found) for _ in range(2))
    return 2 * size**3 / _seconds(timer(torch.mm, left, right, **SAMPLES))


def _seconds(timing: Timing) -> float:
    """The fastest sample: what disturbs a call says nothing of what the device can do."""
    return min(timing.graph_samples_ms or timing.samples_ms) / MS_PER_S


def _floating_dtype(name: object) -> torch.dtype:
    import torch

    found = getattr(torch, name, None) if isinstance(name, str) else None
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise UsageError(f"dtype={name!r}: expected a floating dtype of torch, such as 'bfloat16'")
    return found
