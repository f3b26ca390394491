"""Torch settings during a measurement: no gradients, deterministic algorithms."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def measuring_conditions() -> Iterator[None]:
    """Disable gradients and library logs, and make cuDNN deterministic, without benchmarking."""
    import torch

    from pytest_llmperf.models.quiet import quiet

    with torch.inference_mode(), torch.backends.cudnn.flags(benchmark=False, deterministic=True), quiet():
        yield
