"""CUDA graphs on a CPU: a capture records each operator, and a replay repeats exactly these operators.

What a real graph freezes is frozen here too: Python code does not run again, numbers of the host keep their values, and
each result is written to the memory that it had during the capture.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from fake_cuda import FakeCuda, FakeGraph
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

real_cuda = torch.cuda

SYNCHRONIZING = {torch.ops.aten.item.default, torch.ops.aten.nonzero.default}


class Recorder(TorchDispatchMode):
    def __init__(self, cuda: RecordingCuda) -> None:
        super().__init__()
        self.cuda = cuda
        self.calls: list[tuple] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in SYNCHRONIZING:
            self.cuda.fail_if_capturing()
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    def again(self) -> None:
        for func, args, kwargs, result in self.calls:
            for old, new in zip(tree_leaves(result), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class RecordedGraph(FakeGraph):
    def capture_begin(self, *, pool: str) -> None:
        super().capture_begin(pool=pool)
        self.recorder = Recorder(self.cuda)
        self.recorder.__enter__()

    def capture_end(self) -> None:
        if self.cuda.capturing is self:
            self.recorder.__exit__(None, None, None)
        self.work = [0.0] * len(self.recorder.calls)
        super().capture_end()
        self.cuda.captured.append(self)

    def replay(self) -> None:
        super().replay()
        self.cuda.replayed.append(self)
        self.recorder.again()

    def reset(self) -> None:
        super().reset()
        self.recorder.calls.clear()


class RecordingCuda(FakeCuda):
    """Fakes ``torch.cuda`` for CPU tensors; everything else is the real module's."""

    def __init__(self) -> None:
        super().__init__()
        self.default_generators = {None: self.generator}
        self.captured: list[RecordedGraph] = []
        self.replayed: list[RecordedGraph] = []
        self.pools = 0
        self.streams: list[object] = []

    def __getattr__(self, name: str):
        return getattr(real_cuda, name)

    def CUDAGraph(self) -> RecordedGraph:  # noqa: N802  # torch's name
        return RecordedGraph(self)

    def graph_pool_handle(self) -> str:
        self.pools += 1
        return super().graph_pool_handle()

    def stream(self, stream: object):
        self.streams.append(stream)
        return super().stream(stream)

    def empty_cache(self) -> None:
        pass

    def memory_reserved(self, _device: str) -> int:
        """Return ten megabytes, plus one per graph, plus cuBLAS's workspaces."""
        return ((10 + len(self.captured)) << 20) + self.memory_allocated()

    def mem_get_info(self, _device: str) -> tuple[int, int]:
        """Return free and total memory; the driver uses three megabytes per graph."""
        return (100 - 3 * len(self.captured)) << 20, 100 << 20

    def current_stream(self) -> SimpleNamespace:
        return SimpleNamespace(wait_stream=lambda other: None)
