"""Fake of a CUDA device whose work takes a given time, with torch's documented events, streams and graphs.

The device does its work in order. Its time advances, in milliseconds, with work only; the host takes no time.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from types import SimpleNamespace

SYNCHRONIZES = "called a synchronizing CUDA operation"
WORKSPACE = 32 << 20
"""Bytes of a cuBLAS workspace on Hopper, per handle and stream."""
BROKEN = "CUDA error: operation failed due to a previous error during capture"


class FakeGraph:
    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda
        self.work: list[float] = []
        self.ended = False
        self.has_workspace = False
        """Whether the graph's pool holds a workspace."""

    def capture_begin(self, *, pool: str) -> None:
        assert self.cuda.stream_name != "default", "CUDA graphs must be captured on a non-default stream."
        assert pool == "pool"
        self.cuda.capturing, self.cuda.captures_underway = self, 1
        self.cuda.pools_in_use += 1
        self.cuda.generator.state["capturing"] = True

    def capture_end(self) -> None:
        if self.cuda.capturing is not self:
            raise RuntimeError(BROKEN)
        self.cuda.capturing = None
        if self.cuda.capture_is_broken:  # as torch does: what follows is not reached
            if self.cuda.ends_allocation:
                self.cuda.captures_underway = 0
            raise RuntimeError(BROKEN)
        self.cuda.captures_underway = 0
        self.cuda.generator.state["capturing"] = False
        self.ended = True
        if not self.work:
            warnings.warn("The CUDA Graph is empty. This usually means that ...", stacklevel=2)

    def replay(self) -> None:
        assert self.ended, "Called CUDAGraph::replay without a preceding successful capture."
        self.cuda.replays.append(len(self.work))
        self.cuda.now += self.cuda.replay_ms + sum(self.work)

    def reset(self) -> None:
        if self.ended:
            self.cuda.pools_in_use -= 1
        self.ended = False
        self.cuda.resets += 1


class FakeGenerator:
    """Copies of its state share one object, as in torch."""

    def __init__(self, state: dict | None = None) -> None:
        self.state = state or {"capturing": False}

    def graphsafe_get_state(self) -> FakeGenerator:
        return FakeGenerator(self.state)

    def clone_state(self) -> FakeGenerator:
        return FakeGenerator(dict(self.state))

    def graphsafe_set_state(self, other: FakeGenerator) -> None:
        self.state = other.state


class FakeCuda:
    """Fakes ``torch.cuda``."""

    __name__ = "torch.cuda"

    def __init__(self) -> None:
        self.now = 0.0
        self.replay_ms = 0.0
        self.stream_name = "default"
        self.capturing: FakeGraph | None = None
        self.capture_is_broken = False
        self.captures_underway = 0
        self.pools_in_use = 0
        self.ends_allocation = False
        """Whether a capture whose end fails ends its allocation too, as since torch 2.12 (pytorch#180395)."""
        self.sync_mode: int | str = 0
        self.eager: list[float] = []
        self.replays: list[int] = []
        self.resets = 0
        self.generator = FakeGenerator()
        self.default_generators = (self.generator,)
        self.released: list[tuple] = []
        self.streams_made = 0
        self.workspaces: dict[object, FakeGraph | None] = {}
        """By stream: the graph whose pool holds the workspace; ``None`` if no pool does."""

    def multiply(self, milliseconds: float) -> None:
        """Launch a matrix product, which needs a workspace; a replay writes to the workspace of the capture."""
        self.launch(milliseconds)
        lies_in = self.workspaces.setdefault(self.stream_name, self.capturing)
        if self.capturing:
            assert lies_in is self.capturing, "a graph whose workspace somebody else may be given"
            self.capturing.has_workspace = True

    def clear_workspaces(self) -> None:
        """Fake ``torch._C._cuda_clearCublasWorkspaces``."""
        assert self.capturing is None, "the memory of a capture cannot be freed while it goes on"
        self.workspaces.clear()

    def memory_allocated(self, _device: str | None = None) -> int:
        return len(self.workspaces) * WORKSPACE

    def launch(self, milliseconds: float) -> None:
        """Launch a kernel."""
        if self.capturing:
            self.capturing.work.append(milliseconds)
        else:
            self.eager.append(milliseconds)
            self.now += milliseconds

    def read_back(self) -> None:
        """Copy to the host, as ``.item()`` does."""
        if self.sync_mode == "error":
            raise RuntimeError(SYNCHRONIZES)
        self.fail_if_capturing()

    def fail_if_capturing(self) -> None:
        """Fail during a capture, as operations do whose failure torch cannot predict."""
        if self.capturing:
            self.capture_is_broken = True
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")

    def synchronize(self, _device: object = None) -> None:
        assert self.capturing is None, "operation not permitted when stream is capturing"

    def Event(self, enable_timing: bool = False) -> SimpleNamespace:  # noqa: N802  # torch's name
        event = SimpleNamespace(time=0.0)
        event.record = lambda stream=None: setattr(event, "time", self.now)
        event.elapsed_time = lambda end: end.time - event.time
        assert enable_timing
        return event

    def Stream(self) -> SimpleNamespace:  # noqa: N802  # torch's name
        self.streams_made += 1
        return SimpleNamespace(wait_stream=lambda other: None, name=f"side {self.streams_made}")

    def current_stream(self, _device: str | None = None) -> str:
        return self.stream_name

    @contextmanager
    def stream(self, stream: object):
        before, self.stream_name = self.stream_name, stream.name
        try:
            yield
        finally:
            self.stream_name = before

    def CUDAGraph(self) -> FakeGraph:  # noqa: N802  # torch's name
        return FakeGraph(self)

    def graph_pool_handle(self) -> str:
        return "pool"

    def get_sync_debug_mode(self) -> int | str:
        return self.sync_mode

    def set_sync_debug_mode(self, debug_mode: int | str) -> None:
        self.sync_mode = debug_mode

    def get_device_properties(self, _device: str) -> SimpleNamespace:
        return SimpleNamespace(L2_cache_size=50 << 20, uuid="0", name="Fake")

    def end_allocate(self, device: int, pool: str) -> None:
        """Fake the allocator's function, which must be called exactly once."""
        if not self.captures_underway:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.captures_underway = 0
        self.released.append((device, pool))

    def release_pool(self, device: int, pool: str) -> None:
        if not self.pools_in_use:
            raise RuntimeError("INTERNAL ASSERT FAILED: no such pool")
        self.pools_in_use -= 1

    @property
    def is_as_before(self) -> bool:
        """Whether no capture left anything behind."""
        return (
            self.capturing is None
            and not self.captures_underway
            and not self.pools_in_use
            and self.stream_name == "default"
            and self.sync_mode == 0
            and self.generator.state == {"capturing": False}
        )
