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
    torch: Any = sys.modules.get("torch")
    kind, _, index = device.partition(":")
    module: Any = getattr(torch, kind, None)
    if not getattr(module, "is_initialized", bool)() or (kind == "cuda" and not _has_context(torch, int(index or 0))):
        return ""
    return _failure(module, device) and _failure(module, device)


def _has_context(torch: Any, index: int) -> bool:
    """Whether this process has a context on a CUDA device: waiting for it would make one, with its memory."""
    ask = getattr(torch._C, "_cuda_hasPrimaryContext", None)  # noqa: SLF001  # torch has no public way to ask
    return ask is None or bool(ask(index))


def _failure(module: Any, device: str) -> str:
    try:
        module.synchronize(device)
    except RuntimeError as error:
        return f"{type(error).__name__}: {first_line(error)}"
    return ""
