"""CUDA graph capture of repeated calls; the device keeps working after a failed capture."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from pytest_llmperf.errors import LlmperfError, MeasurementError
from pytest_llmperf.hardware.cublas_workspaces import inside_its_pool
from pytest_llmperf.hardware.garbage_collector import collector_paused
from pytest_llmperf.text import error_line

_SYNCHRONIZES = "called a synchronizing CUDA operation"
_EMPTY = "The CUDA Graph is empty"
_NOT_RECORDING = "not currently recording"


class NotCapturableError(Exception):
    """The calls cannot be captured; the message is one line and says why."""


@dataclass(frozen=True)
class Pool:
    """Memory pool shared by graphs that never replay concurrently. torch reuses pool memory within one stream only."""

    handle: Any
    stream: Any

    @classmethod
    def new(cls) -> Pool:
        """Create a pool on the current device, with its own stream."""
        import torch

        stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # untyped in torch
        return cls(torch.cuda.graph_pool_handle(), stream)


def why_no_graphs(device: str) -> str:
    """Why a device has no CUDA graphs; empty if it has them."""
    return "" if device.startswith("cuda") else f"{device} has no CUDA graphs"


@contextmanager
def captured(device: str, call: Callable[[], object], times: int, *, pool: Pool | None = None) -> Iterator[Any]:
    """Capture ``times`` calls into a CUDA graph, replay it once, and keep it for the block.

    The device's random state is preserved: capture and replays draw from a copy.

    Args:
        device: the current CUDA device, with its index.
        call: a callable that has already run eagerly; an error it raises in an uncaptured call propagates unchanged.
        times: number of calls in the graph.
        pool: memory pool to capture into (default: a new one).

    Raises:
        NotCapturableError: the calls cannot be captured. Nothing remains of the attempt.
        MeasurementError: the device no longer works after the attempt.
    """
    import torch

    with _copied_random_state(device):
        graph = _capture(device, call, times, pool or Pool.new())
        try:
            graph.replay()  # the first replay uploads the graph
            torch.cuda.synchronize()
            yield graph
        finally:
            graph.reset()


def _capture(device: str, call: Callable[[], object], times: int, pool: Pool) -> Any:
    import torch

    pool.stream.wait_stream(torch.cuda.current_stream())
    # Not `torch.cuda.graph`: if ending the capture fails, it leaves its side stream current.
    # The garbage collector is paused: freeing a tensor's memory can break a capture.
    with collector_paused(), torch.cuda.stream(pool.stream):
        _warm_call(call)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with inside_its_pool(graph):
            _fill(graph, device, call, times, pool)
    return graph


def _fill(graph: Any, device: str, call: Callable[[], object], times: int, pool: Pool) -> None:
    try:
        graph.capture_begin(pool=pool.handle)
        for _ in range(times):
            call()
        _end(graph)
    except BaseException as error:
        if _is_empty(error):
            graph.reset()
        else:
            _abandon(graph, pool.handle, device)
        if isinstance(error, Exception) and not isinstance(error, LlmperfError):  # time limits raise LlmperfError
            raise NotCapturableError(f"capture failed: {error_line(error)}") from error
        raise


def _warm_call(call: Callable[[], object]) -> None:
    """Make one uncaptured call on the current stream.

    Most failed captures are due to synchronization, which torch can detect without a capture. A capture that never
    began need not be aborted.
    """
    try:
        with _synchronizing_raises():
            call()
    except RuntimeError as error:
        if _SYNCHRONIZES not in str(error):
            raise
        raise NotCapturableError("the call synchronizes with the host, which CUDA graphs do not support") from error


@contextmanager
def _synchronizing_raises() -> Iterator[None]:
    import torch

    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns once that it does not detect every synchronization
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _end(graph: Any) -> None:
    """End a capture. Raises torch's warning if the graph is empty: replaying an empty graph takes no time."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=_EMPTY)
        graph.capture_end()


def _is_empty(error: BaseException) -> bool:
    """Whether a capture ended properly but recorded no work."""
    return isinstance(error, Warning) and _EMPTY in str(error)


def _abandon(graph: Any, pool: Any, device: str) -> None:
    """Abort a failed capture, and restore the allocator where ending the capture fails too.

    Before torch 2.12, the allocator then still assumes a capture in progress: it defers frees, and emptying its cache
    fails an assertion (pytorch#180395). Later versions only keep the pool. torch has no public function to restore the
    allocator.
    """
    import torch

    try:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns that the graph is empty
                graph.capture_end()
        except RuntimeError:
            _end_allocation(torch.device(device).index, pool)
        graph.reset()
        torch.ones(1, device=device).add_(1)
        torch.cuda.synchronize()
    except (RuntimeError, AttributeError) as error:
        raise MeasurementError(f"{device} does not work after a failed capture: {error_line(error)}") from error


def _end_allocation(index: int, pool: Any) -> None:
    """End allocation to a pool, unless it has ended already, and release the pool.

    Raises:
        AttributeError: torch has this function under neither of its known names.
        RuntimeError: the allocator fails.
    """
    from torch import _C

    name = "_cuda_endAllocateToPool"
    end = getattr(_C, name if hasattr(_C, name) else "_cuda_endAllocateCurrentStreamToPool")  # its name before 2.8
    try:
        end(index, pool)
    except RuntimeError as error:
        if _NOT_RECORDING not in str(error):
            raise
    with suppress(RuntimeError):  # a capture that failed to begin has no pool
        _C._cuda_releasePool(index, pool)  # noqa: SLF001  # torch has no public function for this


@contextmanager
def _copied_random_state(device: str) -> Iterator[None]:
    """Draw from a copy of the device's random state: a failed capture makes the state unusable."""
    import torch

    generator = torch.cuda.default_generators[torch.device(device).index]
    state = generator.graphsafe_get_state()
    generator.graphsafe_set_state(generator.clone_state())
    try:
        yield
    finally:
        generator.graphsafe_set_state(state)
