"""Decode with CUDA graphs: one captured step per batch size, over a shared static cache."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING, Any, ClassVar

from pytest_llmperf.engines.executions.execution import Generated, OnToken, PreparedExecution, unnoticed
from pytest_llmperf.engines.executions.greedy_loop import Options
from pytest_llmperf.engines.executions.read_back import why_read_back
from pytest_llmperf.engines.executions.static_cache import (
    NOTHING,
    check_static,
    decode,
    next_token,
    prefill,
    static_cache,
    tokens_of_loop,
    unlike_loop,
)
from pytest_llmperf.errors import ExecutionUnavailable, MeasurementError, UsageError
from pytest_llmperf.hardware.clock import NS_PER_MS, Clock
from pytest_llmperf.hardware.cublas_workspaces import clear_workspaces
from pytest_llmperf.hardware.cuda_graph import NotCapturableError, Pool, captured, why_no_graphs
from pytest_llmperf.metrics import Figure, Scalar
from pytest_llmperf.validation import require_whole

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Graph:
    """Decode steps replayed from CUDA graphs over a static cache; prefill is eager.

    A batch is padded to the next of ``sizes``. All sizes up to that one are captured, largest first, into one memory
    pool, as an engine does that serves batches up to the measured size.

    Raises:
        UsageError: a size is not a positive integer.
    """

    name: ClassVar[str] = "graph"

    sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)

    def __post_init__(self) -> None:
        for size in self.sizes:
            require_whole("graph: sizes", size, at_least=1)

    @property
    def settings(self) -> Mapping[str, Scalar]:
        """Settings that determine the graphs."""
        return {"cache": "static", "sizes": ",".join(map(str, sorted(self.sizes)))}

    @contextmanager
    def open(self, model: Any, prompt: torch.Tensor, output_tokens: int, clock: Clock) -> Iterator[PreparedExecution]:
        """Capture the graphs and make one request.

        Raises:
            ExecutionUnavailable: the device has no CUDA graphs, or steps of this kind of model cannot be captured.
            MeasurementError: a step failed to capture that should be capturable.
            UsageError: the batch is larger than every size, or the request has one output token and so no decode.
        """
        cache = static_cache(model, prompt, output_tokens)
        _check_available(str(prompt.device), model.config, cache)
        sizes = self._captured_sizes(prompt.shape[0])
        check_static(model, prompt, self.name)
        expected = tokens_of_loop(model, prompt, output_tokens)
        steps = GraphedSteps(model, cache, prompt, largest=sizes[0])
        with ExitStack() as stack:
            taken = steps.capture(sizes, stack, clock)
            generated = steps.request(output_tokens, unnoticed)
            yield PreparedExecution(steps.request, lambda: [*taken, unlike_loop(generated, expected)], dispatches=False)

    def _captured_sizes(self, batch_size: int) -> list[int]:
        """Sizes to capture, largest first; the batch is padded to the largest."""
        padded = min((size for size in self.sizes if size >= batch_size), default=None)
        if padded is None:
            raise UsageError(
                f"execution 'graph': a batch of {batch_size} exceeds the captured sizes ({self.settings['sizes']}): "
                "add a larger size to Graph(sizes=...)"
            )
        return sorted((size for size in self.sizes if size <= padded), reverse=True)


class GraphedSteps:
    """Requests of one batch, whose decode steps replay the graph of size ``largest``."""

    def __init__(self, model: Any, cache: Any, prompt: torch.Tensor, *, largest: int) -> None:
        import torch

        self._model = model
        self._prompt = prompt
        self._token = torch.zeros(largest, 1, dtype=torch.long, device=prompt.device)
        next_token(model, cache, self._token)  # allocates the cache
        self._cache = cache
        self._own = first_sequences(cache, prompt.shape[0])
        self._graph: Any = None

    def capture(self, sizes: Sequence[int], stack: ExitStack, clock: Clock) -> list[Figure]:
        """Capture a step of each size, for as long as the stack is open; requests replay the first."""
        device, pool = str(self._prompt.device), Pool.new()
        reserved, free = _reserved_bytes(device), _free_bytes(device)
        start = time.perf_counter_ns()
        graphs = [stack.enter_context(self._captured(device, size, pool)) for size in sizes]
        clock.synchronize()
        capture_ms = (time.perf_counter_ns() - start) / NS_PER_MS
        self._graph = graphs[0]
        return [
            Figure("capture_ms", capture_ms),
            Figure("graph_memory_bytes", _reserved_bytes(device) - reserved),
            Figure("graph_device_memory_bytes", free - _free_bytes(device)),
        ]

    def request(self, output_tokens: int, on_token: OnToken) -> Generated:
        """Prefill the batch unpadded, then replay padded steps."""
        batch = self._prompt.shape[0]

        def step(_token: torch.Tensor, _position: Options) -> torch.Tensor:
            self._graph.replay()
            return self._token[:batch]

        first = prefill(self._model, self._own, self._prompt)
        self._token[:batch] = first
        return Generated(decode(first, step, output_tokens, on_token, repeat(NOTHING)), self._cache)

    @contextmanager
    def _captured(self, device: str, size: int, pool: Pool) -> Iterator[Any]:
        token, cache = self._token[:size], first_sequences(self._cache, size)
        cache.reset()  # capturing makes two steps, which fit into an empty cache

        def step() -> None:
            token.copy_(next_token(self._model, cache, token))

        try:
            with captured(device, step, times=1, pool=pool) as graph:
                yield graph
        except NotCapturableError as error:
            kind = ExecutionUnavailable if _counts_on_the_host(self._model) else MeasurementError
            raise kind(f"execution 'graph': a step of {type(self._model).__name__}: {error}") from error


def first_sequences(cache: Any, size: int) -> Any:
    """A view of a static cache for fewer sequences; it shares memory and the position count."""
    fewer = copy.copy(cache)
    fewer.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in fewer.layers:
        layer.keys, layer.values, layer.batch_size = layer.keys[:size], layer.values[:size], size
    return fewer


def _check_available(device: str, config: Any, cache: Any) -> None:
    if reason := why_no_graphs(device) or why_read_back(config) or _why_no_fixed_cache(cache):
        raise ExecutionUnavailable(f"execution 'graph' cannot run here: {reason}")


def _why_no_fixed_cache(cache: Any) -> str:
    from transformers.cache_utils import StaticLayer

    kinds = {type(layer).__name__ for layer in cache.layers if type(layer) is not StaticLayer}
    return f"cache layers of type {', '.join(sorted(kinds))} count positions on the host" if kinds else ""


def _counts_on_the_host(model: Any) -> bool:
    """Whether each step reads the number of outliers from the device, as LLM.int8() with a threshold does."""
    config: Any = getattr(model.config, "quantization_config", None)
    return bool(getattr(config, "load_in_8bit", False)) and config.llm_int8_threshold > 0


def _reserved_bytes(device: str) -> int:
    """Bytes reserved by the caching allocator, including graph pools, after freeing unused ones."""
    import torch

    torch.cuda.synchronize(device)
    clear_workspaces()
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved(device)


def _free_bytes(device: str) -> int:
    """Free bytes on the device, as reported by the driver."""
    import torch

    free: int = torch.cuda.mem_get_info(device)[0]
    return free
