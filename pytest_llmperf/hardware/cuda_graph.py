"""Calls captured into a CUDA graph, and a device that works as before where they cannot be."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from pytest_llmperf.errors import LlmperfError, MeasurementError
from pytest_llmperf.hardware.cublas_workspaces import inside_its_pool
from pytest_llmperf.hardware.garbage_collector import collector_paused
from pytest_llmperf.text import first_line

_SYNCHRONIZES = "called a synchronizing CUDA operation"
_EMPTY = "The CUDA Graph is empty"
_NOT_RECORDING = "not currently recording"


class NotCapturableError(Exception):
    """The calls cannot be captured; the message says why, in one line."""


@dataclass(frozen=True)
class Pool:
    """Memory that graphs share which are never replayed at once. torch reuses it within one stream alone."""

    handle: Any
    stream: Any

    @classmethod
    def new(cls) -> Pool:
        """One on the current device, with a stream of its own."""
        import torch

        stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch's own
        return cls(torch.cuda.graph_pool_handle(), stream)


def why_no_graphs(device: str) -> str:
    """Why a device has no CUDA graphs; empty if it has."""
    return "" if device.startswith("cuda") else f"{device} has no CUDA graphs"


@contextmanager
def captured(device: str, call: Callable[[], object], times: int, *, pool: Pool | None = None) -> Iterator[Any]:
    """A CUDA graph of ``times`` calls, replayed once already, for as long as the block lasts.

    The random state of the device is the user's: what ``call`` draws while it is captured and replayed comes from a
    copy.

    Args:
        device: a CUDA device of torch, with its index; the current one.
        call: has run before, eagerly: what it raises in a call that is not captured comes out as it is.
        times: calls in the graph.
        pool: to capture into (default: one of its own).

    Raises:
        NotCapturableError: the calls cannot be captured. Nothing is left of the attempt.
        MeasurementError: the device does not work any more after the attempt.
    """
    import torch

    with _copied_random_state(device):
        graph = _capture(device, call, times, pool or Pool.new())
        try:
            graph.replay()  # the first one uploads it
            torch.cuda.synchronize()
            yield graph
        finally:
            graph.reset()


def _capture(device: str, call: Callable[[], object], times: int, pool: Pool) -> Any:
    import torch

    pool.stream.wait_stream(torch.cuda.current_stream())
    # Not `torch.cuda.graph`: where ending the capture fails, it leaves its side stream the current one.
    # No garbage is collected meanwhile: freeing a tensor's memory may break a capture.
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
        if isinstance(error, Exception) and not isinstance(error, LlmperfError):  # of which time limits are
            raise NotCapturableError(f"capture failed: {_one_line(error)}") from error
        raise


def _warm_call(call: Callable[[], object]) -> None:
    """One call on the current stream, uncaptured.

    Synchronizing is what most often cannot be captured, and torch can tell it beforehand: a capture that is not begun
    need not be abandoned.
    """
    try:
        with _synchronizing_raises():
            call()
    except RuntimeError as error:
        if _SYNCHRONIZES not in str(error):
            raise
        raise NotCapturableError("it synchronizes with the host, which no graph can hold") from error


@contextmanager
def _synchronizing_raises() -> Iterator[None]:
    import torch

    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns once that it does not know all that synchronizes
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _end(graph: Any) -> None:
    """End a capture, which must hold something: a graph without work is replayed in no time."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=_EMPTY)
        graph.capture_end()


def _is_empty(error: BaseException) -> bool:
    """Whether a capture ended as it should, and holds nothing."""
    return isinstance(error, Warning) and _EMPTY in str(error)


def _abandon(graph: Any, pool: Any, device: str) -> None:
    """End a capture that failed, and take back what torch does not where ending it fails as well.

    Before torch 2.12 the allocator then still believes that a capture is underway: it defers frees, and emptying its
    cache asserts (pytorch#180395). Later ones keep the pool alone. torch has no public way to tell it.
    """
    import torch

    try:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that it holds nothing
                graph.capture_end()
        except RuntimeError:
            _end_allocation(torch.device(device).index, pool)
        graph.reset()
        torch.ones(1, device=device).add_(1)
        torch.cuda.synchronize()
    except (RuntimeError, AttributeError) as error:
        raise MeasurementError(f"{device} does not work after a capture that failed: {_one_line(error)}") from error


def _end_allocation(index: int, pool: Any) -> None:
    """Tell the allocator that a capture into this pool has ended, unless it knows, and that nobody needs the pool.

    Raises:
        AttributeError: torch has neither of the names that it gave this function.
        RuntimeError: the allocator refuses.
    """
    from torch import _C

    name = "_cuda_endAllocateToPool"
    end = getattr(_C, name if hasattr(_C, name) else "_cuda_endAllocateCurrentStreamToPool")  # its name before 2.8
    try:
        end(index, pool)
    except RuntimeError as error:
        if _NOT_RECORDING not in str(error):
            raise
    with suppress(RuntimeError):  # a capture that could not even begin has no pool
        _C._cuda_releasePool(index, pool)  # noqa: SLF001  # torch has no public way


@contextmanager
def _copied_random_state(device: str) -> Iterator[None]:
    """Draw from a copy of the device's random state: a capture that fails would leave the original unusable."""
    import torch

    generator = torch.cuda.default_generators[torch.device(device).index]
    state = generator.graphsafe_get_state()
    generator.graphsafe_set_state(generator.clone_state())
    try:
        yield
    finally:
        generator.graphsafe_set_state(state)


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
