"""A device that does nothing more for this process: its context broke, as by an assertion or an access in a kernel."""

from __future__ import annotations

import sys
from typing import Any

from pytest_llmperf.text import first_line


def why_dead(device: str) -> str:
    """Why every call to a device fails in this process; empty if calls work, or if the process has not used it.

    Waiting for the device also tells an error of work that nobody has waited for yet. CUDA reports most errors once,
    and those that break the context at every call until the process ends: only an error that comes twice is one.

    Args:
        device: as torch names it.
    """
    module: Any = getattr(sys.modules.get("torch"), device.partition(":")[0], None)
    if not getattr(module, "is_initialized", bool)():
        return ""
    return _failure(module, device) and _failure(module, device)


def _failure(module: Any, device: str) -> str:
    try:
        module.synchronize(device)
    except RuntimeError as error:
        return f"{type(error).__name__}: {first_line(error)}"
    return ""
