"""How long limits have held a device's clocks down, by counters of its driver: a look sees only its own moment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_llmperf.hardware.environment import ask_nvml

Violations = Mapping[str, int | None]
"""Nanoseconds by policy, since the driver was loaded; ``None`` where it does not count them."""


def violations(nvml: Any, gpu: Any) -> Violations:
    """The present counts of NVML's performance policies. Each is the time below application clocks for its reason."""
    policies = {
        "thermal": (nvml.NVML_PERF_POLICY_THERMAL, nvml.NVML_FI_DEV_PERF_POLICY_THERMAL),
        "power": (nvml.NVML_PERF_POLICY_POWER, nvml.NVML_FI_DEV_PERF_POLICY_POWER),
        "board_limit": (nvml.NVML_PERF_POLICY_BOARD_LIMIT, nvml.NVML_FI_DEV_PERF_POLICY_BOARD_LIMIT),
        "reliability": (nvml.NVML_PERF_POLICY_RELIABILITY, nvml.NVML_FI_DEV_PERF_POLICY_RELIABILITY),
    }
    return {name: _count(nvml, gpu, *policy) for name, policy in policies.items()}


def violation_share(before: Violations, after: Violations, name: str, seconds: float) -> float | None:
    """A policy's share of the seconds between two counts; ``None`` if one of them is unknown, or lower than before."""
    start, end = before[name], after[name]
    if start is None or end is None or end < start or seconds <= 0:
        return None
    return round((end - start) / 1e9 / seconds, 4)


def _count(nvml: Any, gpu: Any, policy: int, field: int) -> int | None:
    """By the status, whose unit NVML documents, or by the field that replaces it: the status goes with CUDA 14."""
    if hasattr(nvml, "nvmlDeviceGetViolationStatus"):
        status = ask_nvml(nvml, lambda: nvml.nvmlDeviceGetViolationStatus(gpu, policy))
        if status is not None:
            return int(status.violationTime)
    found = ask_nvml(nvml, lambda: nvml.nvmlDeviceGetFieldValues(gpu, [field])[0])
    return int(found.value.ullVal) if found is not None and found.nvmlReturn == nvml.NVML_SUCCESS else None
