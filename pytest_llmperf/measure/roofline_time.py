"""Roofline time of counted work: the least time that a device of known peaks needs for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pytest_llmperf.metrics import Figure

if TYPE_CHECKING:
    from pytest_llmperf.measure.peaks import Peaks
    from pytest_llmperf.storage.schema import PhaseWork

MS_PER_S = 1e3


def roofline_ms(
    flops: Mapping[str, float], moved_bytes: float, *, flops_per_s: Mapping[str, float], bytes_per_s: float
) -> float:
    """The larger of the time to compute and the time to move, in ms (Williams, Waterman and Patterson 2009).

    No request is faster. Caches that keep bytes between operators, and operators that are no matrix products, are not
    part of the model.

    Args:
        flops: Floating-point operations by dtype; a multiply-add counts as two.
        moved_bytes: Bytes read and written.
        flops_per_s: Peak rate of each dtype.
        bytes_per_s: Memory bandwidth.

    Raises:
        KeyError: There is no peak rate of a dtype.
    """
    compute_s = sum(count / flops_per_s[dtype] for dtype, count in flops.items() if count)
    return MS_PER_S * max(compute_s, moved_bytes / bytes_per_s)


def roofline_figures(work: Mapping[str, PhaseWork], peaks: Peaks) -> list[Figure]:
    """The roofline times of the prefill and of a token of decode on a device of these peaks."""
    phases = {"roofline_ttft_ms": "prefill", "roofline_tpot_ms": "decode"}
    return [_figure(metric, work.get(phase), peaks) for metric, phase in phases.items()]


def _figure(metric: str, phase: PhaseWork | None, peaks: Peaks) -> Figure:
    if phase is None:
        return Figure(metric, None, "FLOPs and bytes were not counted")
    if phase.without_formula:
        return Figure(metric, None, f"the FLOPs of {', '.join(phase.without_formula)} are unknown")
    if peaks.bytes_per_s is None:
        return Figure(metric, None, peaks.no_bandwidth)
    flops = {dtype: count for dtype, count in phase.flops.items() if count}
    rates = {dtype: rate for dtype in flops if (rate := peaks.flops_per_s(dtype))}
    if lacking := [dtype for dtype in flops if dtype not in rates]:
        return Figure(metric, None, peaks.no_rate.format(", ".join(lacking)))
    moved = sum(phase.bytes.values())
    return Figure(metric, roofline_ms(flops, moved, flops_per_s=rates, bytes_per_s=peaks.bytes_per_s))
