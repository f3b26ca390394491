"""Python's garbage collector, kept out of what is timed."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache


@cache
def set_libraries_aside() -> None:
    """Once a process: what is alive by now stays, and collecting need not look at it again.

    The libraries alone are half a million objects, which take a quarter of a second to look at. What libraries and
    the user's project hold by then does not count as memory of a model (`live_tensor_bytes`).
    """
    gc.collect()
    gc.freeze()


@contextmanager
def collector_paused() -> Iterator[None]:
    """No garbage collection but between requests, as timeit does: one inside a request would be blamed on the model."""
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
