"""Detect a device whose context is broken, such as by a failed assertion or an illegal access in a kernel."""

from __future__ import annotations

import sys
from typing import Any

from pytest_llmperf.text import error_line


def why_dead(device: str) -> str:
    """Why every call to a device fails in this process; empty if calls work or the process has not used the device.

    Synchronizing also reports errors of pending work. CUDA reports most errors once; errors that break the context are
    reported by every call until the process ends. So only an error reported twice means a dead device.

    Args:
        device: the torch device.
    """
    torch: Any = sys.modules.get("torch")
    kind, _, index = device.partition(":")
    module: Any = getattr(torch, kind, None)
    if not getattr(module, "is_initialized", bool)() or (kind == "cuda" and not _has_context(torch, int(index or 0))):
        return ""
    return _failure(module, device) and _failure(module, device)


def _has_context(torch: Any, index: int) -> bool:
    """Whether this process has a context on a CUDA device. Synchronizing would create one and take memory."""
    ask = getattr(torch._C, "_cuda_hasPrimaryContext", None)  # noqa: SLF001  # torch has no public function for this
    return ask is None or bool(ask(index))


def _failure(module: Any, device: str) -> str:
    try:
        module.synchronize(device)
    except RuntimeError as error:
        return error_line(error)
    return ""
