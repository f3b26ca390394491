"""cuBLAS' workspaces: torch allocates one for each handle and stream, counts it as memory in use, and keeps it.

On Hopper each is 32 MiB. Whatever ran before a measurement would be in its figures of memory.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

_captured_here: WeakSet[Any] = WeakSet()


def clear_workspaces() -> None:
    """Free the workspaces of all streams: a product that needs one has it allocated anew.

    A graph may use a workspace that lies outside of its own pool, and would write to it in every replay. So nothing
    is freed while a graph is alive that `inside_its_pool` did not capture. Those made before the first model was
    loaded are not seen (see `set_libraries_aside`).
    """
    import torch

    clear = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)  # noqa: SLF001  # as torch's own inductor does
    if clear and not _others_graphs():
        clear()


@contextmanager
def inside_its_pool(graph: Any) -> Iterator[None]:
    """Capture a graph in this block: its workspace is allocated in the graph's pool, and no later one shares it."""
    clear_workspaces()
    _captured_here.add(graph)
    try:
        yield
    finally:
        clear_workspaces()


def _others_graphs() -> bool:
    import torch

    kind = torch.cuda.CUDAGraph
    # Not isinstance: that asks lazy objects for their class and sets off their deprecation warnings.
    return any(type(thing) is kind and thing not in _captured_here for thing in gc.get_objects())
