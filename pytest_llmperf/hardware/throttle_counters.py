"""NVML's throttling counters: how long limits reduced a GPU's clocks. They cover the time between clock readings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_llmperf.hardware.environment import ask_nvml

Violations = Mapping[str, int | None]
"""Nanoseconds by policy since the driver was loaded; ``None`` where the driver does not count them."""


def violations(nvml: Any, gpu: Any) -> Violations:
    """Read the counters of NVML's performance policies: time below application clocks, by reason."""
    policies = {
        "thermal": (nvml.NVML_PERF_POLICY_THERMAL, nvml.NVML_FI_DEV_PERF_POLICY_THERMAL),
        "power": (nvml.NVML_PERF_POLICY_POWER, nvml.NVML_FI_DEV_PERF_POLICY_POWER),
        "board_limit": (nvml.NVML_PERF_POLICY_BOARD_LIMIT, nvml.NVML_FI_DEV_PERF_POLICY_BOARD_LIMIT),
        "reliability": (nvml.NVML_PERF_POLICY_RELIABILITY, nvml.NVML_FI_DEV_PERF_POLICY_RELIABILITY),
    }
    return {name: _count(nvml, gpu, *policy) for name, policy in policies.items()}


def violation_share(before: Violations, after: Violations, name: str, seconds: float) -> float | None:
    """Share of the interval that a policy was active; ``None`` if a counter is unknown or decreased."""
    start, end = before[name], after[name]
    if start is None or end is None or end < start or seconds <= 0:
        return None
    return round((end - start) / 1e9 / seconds, 4)


def _count(nvml: Any, gpu: Any, policy: int, field: int) -> int | None:
    """Read a counter by violation status, whose unit NVML documents, or by field value. CUDA 14 removes the status."""
    if hasattr(nvml, "nvmlDeviceGetViolationStatus"):
        status = ask_nvml(nvml, lambda: nvml.nvmlDeviceGetViolationStatus(gpu, policy))
        if status is not None:
            return int(status.violationTime)
    found = ask_nvml(nvml, lambda: nvml.nvmlDeviceGetFieldValues(gpu, [field])[0])
    return int(found.value.ullVal) if found is not None and found.nvmlReturn == nvml.NVML_SUCCESS else None
