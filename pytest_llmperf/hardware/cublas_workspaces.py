"""cuBLAS workspaces: torch allocates one per handle and stream, keeps it, and counts it as allocated memory.

Each takes 32 MiB on Hopper, so workspaces of earlier work would appear in a measurement's memory peaks.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

_captured_here: WeakSet[Any] = WeakSet()


def clear_workspaces() -> None:
    """Free the cuBLAS workspaces of all streams; later matrix products allocate new ones.

    A CUDA graph may use a workspace outside its own pool and write to it in every replay. So nothing is freed while a
    graph is alive that was not captured in `inside_its_pool`. Graphs created before the first model was loaded are not
    detected (see `set_libraries_aside`).
    """
    import torch

    clear = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)  # noqa: SLF001  # torch's inductor calls it too
    if clear and not _others_graphs():
        clear()


@contextmanager
def inside_its_pool(graph: Any) -> Iterator[None]:
    """Capture a graph in this block, so that its workspace is in the graph's pool and no later graph shares it."""
    clear_workspaces()
    _captured_here.add(graph)
    try:
        yield
    finally:
        clear_workspaces()


def _others_graphs() -> bool:
    import torch

    kind = torch.cuda.CUDAGraph
    # Not isinstance: it reads the class of lazy objects, which triggers their deprecation warnings.
    return any(type(thing) is kind and thing not in _captured_here for thing in gc.get_objects())
