"""The L2 cache of a device, emptied between calls so that each finds its inputs in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_SIZE_NAMES = ("L2_cache_size", "last_level_cache_size")
"""As torch's CUDA and XPU devices call it."""
_TIMES = 2
"""A buffer of the cache's size alone may leave lines of others in it: replacement is not strictly by age."""


@dataclass(frozen=True)
class Flush:
    """Puts the work that empties the cache into the current stream; does nothing, for ``reason``, if there is one."""

    run: Callable[[], object]
    reason: str = ""


def no_flush(reason: str) -> Flush:
    """A flush that does nothing."""
    return Flush(lambda: None, reason)


def l2_flush(device: str) -> Flush:
    """A flush that writes a buffer of twice the cache's size.

    A CPU's caches are not flushed: torch does not tell their size, and other cores share them. Input sets that are
    larger than them together, in rotation, do the same there.
    """
    import torch

    size = _l2_bytes(device)
    if not size:
        return no_flush(f"torch tells no L2 size of {device}")
    return Flush(torch.empty(_TIMES * size, dtype=torch.uint8, device=device).zero_)


def _l2_bytes(device: str) -> int:
    import torch

    module: Any = getattr(torch, device.partition(":")[0])
    if not hasattr(module, "get_device_properties"):
        return 0
    properties = module.get_device_properties(device)
    return next((int(getattr(properties, name)) for name in _SIZE_NAMES if hasattr(properties, name)), 0)
