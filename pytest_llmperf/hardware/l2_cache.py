"""Flush the L2 cache of a GPU, or the largest cache of a CPU.

Flushing before each timed call makes each call read its inputs from memory.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SIZE_NAMES = ("L2_cache_size", "last_level_cache_size")
"""Names of the size in the properties of torch's CUDA and XPU devices."""
_HOST_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_TIMES = 2
"""Buffer size relative to the cache. Replacement is not strict LRU, so a factor of 1 may leave old lines."""


@dataclass(frozen=True)
class Flush:
    """Enqueues work that flushes the cache; does nothing if ``reason`` is not empty."""

    run: Callable[[], object]
    reason: str = ""


def no_flush(reason: str) -> Flush:
    """A flush that does nothing."""
    return Flush(lambda: None, reason)


def l2_flush(device: str) -> Flush:
    """A flush that writes a buffer of twice the cache's size."""
    import torch

    size = _host_cache_bytes() if device == "cpu" else _device_cache_bytes(device)
    if not size:
        return no_flush(f"the cache size of {device} is unknown")
    return Flush(torch.empty(_TIMES * size, dtype=torch.uint8, device=device).zero_)


def _device_cache_bytes(device: str) -> int:
    """Cache size as reported by torch; 0 if it is not reported."""
    import torch

    module: Any = getattr(torch, device.partition(":")[0])
    if not hasattr(module, "get_device_properties"):
        return 0
    properties = module.get_device_properties(device)
    return next((int(getattr(properties, name)) for name in _SIZE_NAMES if hasattr(properties, name)), 0)


def _host_cache_bytes() -> int:
    """Size of the largest CPU cache as reported by Linux (``32768K``); 0 on other systems."""
    sizes = [0]
    for path in _HOST_CACHES.glob("index*/size"):
        with suppress(OSError, ValueError):
            sizes.append(int(path.read_text(encoding="ascii").strip().removesuffix("K")) << 10)
    return max(sizes)
