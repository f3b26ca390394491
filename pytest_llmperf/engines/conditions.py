"""What holds while a model is measured: no gradients, and the same algorithms in every run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def measuring_conditions() -> Iterator[None]:
    """No gradients, and the same algorithms in every run: cuDNN deterministic and not searching."""
    import torch

    from pytest_llmperf.models.quiet import quiet

    with torch.inference_mode(), torch.backends.cudnn.flags(benchmark=False, deterministic=True), quiet():
        yield
