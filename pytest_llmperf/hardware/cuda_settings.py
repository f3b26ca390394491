"""Settings of CUDA, its libraries and torch that change performance figures, for the environment record."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

UNSET = "default"
_VARIABLES: Mapping[str, tuple[str, ...]] = {
    "cuda_launch_blocking": ("CUDA_LAUNCH_BLOCKING",),
    "cublas_workspace": ("CUBLAS_WORKSPACE_CONFIG",),
    "cuda_allocator": ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"),
}
"""Environment variables by field; the first one that is set applies."""


def cuda_settings() -> dict[str, str]:
    """Environment fields of these settings. Unset ones are ``default``: setting one is a difference between runs."""
    return {**{field: _variable(*names) for field, names in _VARIABLES.items()}, "fp32_precision": _fp32_precision()}


def _variable(*names: str) -> str:
    found = next((value for name in names if (value := os.environ.get(name, "").strip())), UNSET)
    return UNSET if found == "0" else found


def _fp32_precision() -> str:
    """Precision of float32 matrix products and of cuDNN convolutions: ``ieee`` or ``tf32``."""
    import torch

    backends: Any = torch.backends
    matmul, cudnn = backends.cuda.matmul, backends.cudnn
    if hasattr(matmul, "fp32_precision"):  # torch 2.9 or later, where the older names may raise
        whole = _first(backends.fp32_precision, "ieee")
        return f"matmul {_first(matmul.fp32_precision, whole)}, cudnn {_first(cudnn.conv.fp32_precision, whole)}"
    old = {"matmul": matmul, "cudnn": cudnn}
    return ", ".join(f"{name} {'tf32' if one.allow_tf32 else 'ieee'}" for name, one in old.items())


def _first(value: str, otherwise: str) -> str:
    return otherwise if value == "none" else value
