"""Python's garbage collector: pause it during timed requests, and freeze library objects."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache


@cache
def set_libraries_aside() -> None:
    """Freeze all objects alive now, once per process, so that collections need not scan them.

    The libraries alone are half a million objects, and scanning them takes a quarter of a second. Tensors alive before
    this call do not count as a model's memory (`live_tensor_bytes`).
    """
    gc.collect()
    gc.freeze()


@contextmanager
def collector_paused() -> Iterator[None]:
    """Collect garbage before the block and not inside it, as timeit does: a collection would lengthen a request."""
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
