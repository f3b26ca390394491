"""Quantizations by name, with their settings of transformers, bitsandbytes and torchao."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pytest_llmperf.errors import MissingDependency, UsageError

if TYPE_CHECKING:
    import torch

DENSE: Mapping[str, str] = MappingProxyType({"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"})
"""Dtypes of unquantized weights, by the quantization's name."""
STORED = "stored"
"""The quantization of a checkpoint that is quantized already."""
DEFAULTS = ("nf4", "int8", "int8-decomp")
"""Quantizations that are measured unless others are named."""
FOUR_BIT = ("nf4", "nf4-dq")
"""Quantizations that bitsandbytes does for experts too."""
DEFAULT_THRESHOLD = 6.0
"""Activations above it are outliers, which LLM.int8() multiplies in 16 bit."""


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """Weight format and compute dtype.

    Attributes:
        name: The name that users write.
        dtype: The torch dtype of unquantized tensors; None is the device's 16-bit compute dtype.
        bitsandbytes: Keywords of ``transformers.BitsAndBytesConfig``; empty if bitsandbytes is not used.
        torchao: The name of the class in ``torchao.quantization`` that configures it; empty if torchao is not used.
        torchao_options: Keywords of that class.
        capability: The lowest compute capability of the GPUs that run it; None if a CPU runs it too.
    """

    name: str
    dtype: str | None = None
    bitsandbytes: Mapping[str, Any] = field(default_factory=dict, hash=False)
    torchao: str = ""
    torchao_options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    capability: tuple[int, int] | None = None

    @property
    def needs_bitsandbytes(self) -> bool:
        """Whether loading needs the bitsandbytes package."""
        return bool(self.bitsandbytes)

    @property
    def replaces_layers(self) -> bool:
        """Whether linear layers are quantized while the model is loaded."""
        return self.needs_bitsandbytes or bool(self.torchao)

    def transformers_config(self, compute_dtype: torch.dtype, *, kept: Sequence[str] = ()) -> Any | None:
        """The ``BitsAndBytesConfig`` or ``TorchAoConfig`` to load with, or None for dense and stored weights.

        Args:
            compute_dtype: The dtype of activations.
            kept: Names of the modules that stay dense, the head included; empty for transformers' own choice.
        """
        if self.torchao:
            return self._torchao_config([*kept] or None)
        if not self.needs_bitsandbytes:
            return None
        from transformers import BitsAndBytesConfig

        compute = {"bnb_4bit_compute_dtype": compute_dtype} if "load_in_4bit" in self.bitsandbytes else {}
        return BitsAndBytesConfig(**self.bitsandbytes, **compute, llm_int8_skip_modules=[*kept] or None)

    def _torchao_config(self, kept: list[str] | None) -> Any:
        from transformers import TorchAoConfig

        kind = getattr(import_module("torchao.quantization"), self.torchao)
        return TorchAoConfig(kind(**self.torchao_options), modules_to_not_convert=kept)

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
            *(Quantization(name=name, dtype=dtype) for name, dtype in DENSE.items()),
            Quantization(name="nf4", bitsandbytes=_nf4(double=False)),
            Quantization(name="nf4-dq", bitsandbytes=_nf4(double=True)),
            # LLM.int8() quantizes from float16; other dtypes would be cast before each matrix product.
            Quantization(name="int8", dtype="float16", bitsandbytes=_int8(threshold=0.0)),
            Quantization(name="int8-decomp", dtype="float16", bitsandbytes=_int8(threshold=DEFAULT_THRESHOLD)),
            Quantization(name="torchao-int8wo", torchao="Int8WeightOnlyConfig"),
            Quantization(name="torchao-int8dq", torchao="Int8DynamicActivationInt8WeightConfig"),
            Quantization(name="torchao-fp8wo", torchao="Float8WeightOnlyConfig"),
            Quantization(name="torchao-fp8dq", torchao="Float8DynamicActivationFloat8WeightConfig", capability=(8, 9)),
            # The packing of torch's own kernel; the default one needs another package.
            Quantization(name="torchao-int4wo", torchao="Int4WeightOnlyConfig", capability=(8, 0), dtype="bfloat16",
                         torchao_options={"int4_packing_format": "tile_packed_to_4d"}),
            Quantization(name=STORED),
        )
    }
)  # fmt: skip


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
    """Dtype of activations and unquantized weights: that of the quantization, else the device's 16-bit one.

    This is bf16 where the device supports it natively, else fp16.
    """
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


def check_available(quantization: Quantization, device: str) -> None:
    """Check that the quantization runs on a device such as ``cuda:1``. Imports bitsandbytes or torchao if needed.

    Raises:
        MissingDependency: It needs bitsandbytes or torchao, which is not installed.
        UsageError: The installed package does not support the device.
    """
    if quantization.needs_bitsandbytes:
        _check_bitsandbytes(quantization, device.partition(":")[0])
    elif quantization.torchao:
        _check_torchao(quantization, device)


def _check_bitsandbytes(quantization: Quantization, device_type: str) -> None:
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


def _check_torchao(quantization: Quantization, device: str) -> None:
    if find_spec("torchao") is None:
        raise MissingDependency("torchao", extra="torchao", purpose=f"quantization {quantization.name!r}")
    if lacking := _lacks(quantization, device):
        raise UsageError(
            f"quantization {quantization.name!r} cannot run on {device!r}: {lacking}; choose another device, or "
            "torchao-int8wo, which runs on a CPU and on every GPU"
        )
    from pytest_llmperf.models.quiet import quiet

    with quiet():  # importing it logs missing optional kernels
        import_module("torchao.quantization")


def _lacks(quantization: Quantization, device: str) -> str:
    """What a torchao quantization needs and the device lacks; empty if it runs."""
    import torch

    kind = device.partition(":")[0]
    if kind not in ("cpu", "cuda"):
        return "torchao's kernels run on cpu and cuda"
    least = quantization.capability
    if least is None:
        return ""
    found = torch.cuda.get_device_capability(device) if kind == "cuda" else None
    if found is None or found < least:
        has = f"it has {found[0]}.{found[1]}" if found else "it is no GPU"
        return f"its kernels need a GPU of compute capability {least[0]}.{least[1]} or higher, and {has}"
    return ""
