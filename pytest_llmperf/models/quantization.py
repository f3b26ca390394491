"""Quantizations by name, with their transformers and bitsandbytes settings."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pytest_llmperf.errors import MissingDependency, UsageError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """Weight format and compute dtype.

    Attributes:
        name: The name that users write.
        dtype: The torch dtype of unquantized tensors; None is the device's 16-bit compute dtype.
        bitsandbytes: Keywords of ``transformers.BitsAndBytesConfig``; empty for dense weights.
    """

    name: str
    dtype: str | None = None
    bitsandbytes: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def needs_bitsandbytes(self) -> bool:
        """Whether loading needs the bitsandbytes package."""
        return bool(self.bitsandbytes)

    def transformers_config(self, compute_dtype: torch.dtype) -> Any | None:
        """The ``BitsAndBytesConfig`` to load with, or None for dense weights."""
        if not self.needs_bitsandbytes:
            return None
        from transformers import BitsAndBytesConfig

        compute = {"bnb_4bit_compute_dtype": compute_dtype} if "load_in_4bit" in self.bitsandbytes else {}
        return BitsAndBytesConfig(**self.bitsandbytes, **compute)

    def describes(self, stored: Mapping[str, Any]) -> bool:
        """Whether a checkpoint's own ``quantization_config`` matches this quantization."""
        return self.needs_bitsandbytes and all(stored.get(key) == value for key, value in self.bitsandbytes.items())


def _nf4(*, double: bool) -> dict[str, Any]:
    return {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": double}


def _int8(*, threshold: float) -> dict[str, Any]:
    return {"load_in_8bit": True, "llm_int8_threshold": threshold}


QUANTIZATIONS: Mapping[str, Quantization] = MappingProxyType(
    {
        quantization.name: quantization
        for quantization in (
            Quantization(name="bf16", dtype="bfloat16"),
            Quantization(name="fp16", dtype="float16"),
            Quantization(name="fp32", dtype="float32"),
            Quantization(name="nf4", bitsandbytes=_nf4(double=False)),
            Quantization(name="nf4-dq", bitsandbytes=_nf4(double=True)),
            # LLM.int8() quantizes from float16; other dtypes would be cast before each matrix product.
            Quantization(name="int8", dtype="float16", bitsandbytes=_int8(threshold=0.0)),
            # Activations above the threshold are outliers and are multiplied in 16 bit (LLM.int8()).
            Quantization(name="int8-decomp", dtype="float16", bitsandbytes=_int8(threshold=6.0)),
        )
    }
)


def find_quantization(name: str) -> Quantization:
    """Find a quantization by name.

    Raises:
        UsageError: It is unknown; the message lists the closest names and all names.
    """
    if name in QUANTIZATIONS:
        return QUANTIZATIONS[name]
    near = difflib.get_close_matches(name.lower(), QUANTIZATIONS, n=2, cutoff=0.5)
    hint = f" (did you mean {' or '.join(near)}?)" if near else ""
    raise UsageError(f"quantization {name!r} does not exist{hint}: expected one of {', '.join(QUANTIZATIONS)}")


def compute_dtype(quantization: Quantization, device: str) -> torch.dtype:
    """Dtype of activations and unquantized weights; for nf4, bf16 where the device supports it natively, else fp16."""
    import torch

    name = quantization.dtype or ("bfloat16" if _computes_bf16(torch.device(device)) else "float16")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _computes_bf16(device: torch.device) -> bool:
    import torch

    if device.type == "cuda":
        # Older GPUs only emulate bf16, but is_bf16_supported() returns True for them too.
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "mps":
        return torch.backends.mps.is_macos_or_newer(14, 0)
    return True


def check_available(quantization: Quantization, device_type: str) -> None:
    """Check that the quantization runs on a device type such as ``cuda``. Imports bitsandbytes if needed.

    Raises:
        MissingDependency: It needs bitsandbytes, which is not installed.
        UsageError: The installed bitsandbytes does not support the device.
    """
    if not quantization.needs_bitsandbytes:
        return
    if find_spec("bitsandbytes") is None:
        raise MissingDependency("bitsandbytes", extra="models", purpose=f"quantization {quantization.name!r}")
    version, devices = _bitsandbytes_support()
    if device_type not in devices:
        raise UsageError(
            f"quantization {quantization.name!r} cannot run on {device_type!r}: bitsandbytes {version} supports "
            f"{', '.join(sorted(devices))}; choose one of these devices, or bf16, fp16 or fp32"
        )


def _bitsandbytes_support() -> tuple[str, frozenset[str]]:
    """The version of bitsandbytes, and the device types it reports as supported."""
    from pytest_llmperf.models.quiet import quiet

    with quiet():  # importing it logs missing optional kernels
        import bitsandbytes
    return bitsandbytes.__version__, frozenset(bitsandbytes.supported_torch_devices)
