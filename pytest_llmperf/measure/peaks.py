"""Peak rates of a device, from its data sheet or measured: memory bandwidth, and matrix products by dtype."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING

from pytest_llmperf.errors import UsageError
from pytest_llmperf.measure.kernel import copy_bandwidth, matrix_product_rate
from pytest_llmperf.models.model_registry import free_memory

if TYPE_CHECKING:
    from pytest_llmperf.hardware.data_sheet import DataSheet

NO_BANDWIDTH = "the device's copy bandwidth could not be measured"
"""Why a figure that needs the bandwidth is missing."""


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """Peak rates of one device."""

    bytes_per_s: float | None
    """Memory bandwidth; ``None`` if unknown."""
    flops_per_s: Callable[[str], float | None]
    """Rate of matrix products of a dtype; ``None`` if unknown. A multiply-add counts as two."""
    no_bandwidth: str
    """Why the bandwidth is unknown."""
    no_rate: str
    """Why a rate is unknown, with a place for dtypes."""


def sheet_peaks(sheet: DataSheet) -> Peaks:
    """The peaks of a GPU that is not here."""
    return Peaks(
        bytes_per_s=sheet.bytes_per_s,
        flops_per_s=sheet.flops_per_s.get,
        no_bandwidth=f"the bandwidth of {sheet.name} is unknown: choose a device with a data sheet with --llmperf-fake",
        no_rate=f"the data sheet of {sheet.name} has no rate of {{}}",
    )


def measured_peaks(device: str) -> Peaks:
    """The peaks that a device reaches, each measured once per process, when it is asked for."""
    return Peaks(
        bytes_per_s=spare_bandwidth(device),
        flops_per_s=partial(_spare_rate, device),
        no_bandwidth=NO_BANDWIDTH,
        no_rate="the device's rate of products in {} could not be measured",
    )


@cache
def spare_bandwidth(device: str) -> float | None:
    """Bytes per second that a copy reads and writes, measured once per process; ``None`` where that fails.

    Call it while the device holds no model; the memory it uses is freed afterwards.
    """
    return _unless_it_fails(partial(copy_bandwidth, device), device)


@cache
def _spare_rate(device: str, dtype: str) -> float | None:
    """Operations per second of a matrix product, measured once per process; ``None`` where that fails."""
    return _unless_it_fails(partial(matrix_product_rate, device, dtype), device)


def _unless_it_fails(measure: Callable[[], float], device: str) -> float | None:
    try:
        return measure()
    except (RuntimeError, UsageError):  # out of memory, in several classes of torch; a dtype that is not multiplied
        return None
    finally:
        free_memory(device)
