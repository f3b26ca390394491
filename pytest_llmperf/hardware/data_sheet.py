"""Data sheets of GPUs that are not here: memory, compute capability, bandwidth and peak rates."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from pytest_llmperf.errors import UsageError

_GIB, _MIB = 1024**3, 1024**2
_OWN_FORM = re.compile(r"(?P<gib>\d+(?:\.\d+)?)GiB:(?P<major>\d+)\.(?P<minor>\d)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class DataSheet:
    """What is known of a GPU."""

    name: str
    memory_bytes: int
    """As the driver reports it. Torch sees one or two percent less, and a process's context takes some more."""
    capability: tuple[int, int]
    """Compute capability."""
    bytes_per_s: float | None = None
    """Bandwidth of its memory; ``None`` if unknown."""
    flops_per_s: Mapping[str, float] = field(default_factory=dict)
    """Peak rate of dense products by dtype, without sparsity; a multiply-add counts as two."""

    @property
    def compute_capability(self) -> str:
        """As it is recorded: ``9.0``."""
        return ".".join(map(str, self.capability))


def _sheet(  # noqa: PLR0913  # the columns of a data sheet
    name: str, mib: int, capability: tuple[int, int], gb_per_s: float, *, tflops: float, fp32: float, int8: float
) -> DataSheet:
    """Make a data sheet; ``tflops`` is the rate in 16 bit, and devices before capability 8.0 have no bf16."""
    half = ("float16", "bfloat16") if capability >= (8, 0) else ("float16",)
    rates = {**dict.fromkeys(half, tflops), "float32": fp32, "int8": int8}
    return DataSheet(
        name=name,
        memory_bytes=mib * _MIB,
        capability=capability,
        bytes_per_s=gb_per_s * 1e9,
        flops_per_s=MappingProxyType({dtype: rate * 1e12 for dtype, rate in rates.items()}),
    )


# Rates and bandwidths: NVIDIA's data sheets of the SXM versions (A100, H100, H200, HGX B200) and of the cards (L4,
# L40S, T4), and the Ada architecture's white paper (RTX 4090). Where a data sheet gives a rate with sparsity, half of
# it. Of the 4090, whose rate depends on it, with accumulation in fp32, as torch multiplies. Float32 without TF32, which
# torch does not use by default. Memory: what nvidia-smi shows.
DATA_SHEETS: Mapping[str, DataSheet] = MappingProxyType(
    {
        sheet.name: sheet
        for sheet in (
            _sheet("a100-40", 40960, (8, 0), 1555, tflops=312, fp32=19.5, int8=624),
            _sheet("a100-80", 81920, (8, 0), 2039, tflops=312, fp32=19.5, int8=624),
            _sheet("h100", 81559, (9, 0), 3350, tflops=989.5, fp32=67, int8=1979),
            _sheet("h200", 143771, (9, 0), 4800, tflops=989.5, fp32=67, int8=1979),
            _sheet("b200", 183359, (10, 0), 8000, tflops=2250, fp32=80, int8=4500),
            _sheet("l4", 23034, (8, 9), 300, tflops=121, fp32=30.3, int8=242),
            _sheet("l40s", 46068, (8, 9), 864, tflops=362, fp32=91.6, int8=733),
            _sheet("rtx-4090", 24564, (8, 9), 1008, tflops=165.2, fp32=82.6, int8=660.6),
            _sheet("t4", 15360, (7, 5), 320, tflops=65, fp32=8.1, int8=130),
        )
    }
)


def find_data_sheet(name: str) -> DataSheet:
    """The data sheet of a name in `DATA_SHEETS`, or one of memory and capability alone, such as ``48GiB:8.9``.

    Raises:
        UsageError: there is no such data sheet; the message suggests the closest name.
    """
    if name in DATA_SHEETS:
        return DATA_SHEETS[name]
    if found := _OWN_FORM.fullmatch(name):
        memory = int(float(found["gib"]) * _GIB)
        return DataSheet(name=name.lower(), memory_bytes=memory, capability=(int(found["major"]), int(found["minor"])))
    near = difflib.get_close_matches(name.lower(), DATA_SHEETS, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise UsageError(
        f"--llmperf-fake {name!r}: unknown device{hint}: expected one of {', '.join(DATA_SHEETS)}, or memory and "
        "compute capability, such as 48GiB:8.9"
    )
