"""transformers engine: ``generate`` for a single request, continuous batching for many."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise, zip_longest
from math import ceil
from typing import TYPE_CHECKING, Any

from pytest_llmperf.engines.conditions import measuring_conditions
from pytest_llmperf.engines.engine import EngineRequest, EngineResponse, Sampling
from pytest_llmperf.engines.executions.execution import check_produced, library_generate
from pytest_llmperf.engines.generation_settings import GenerationSettings
from pytest_llmperf.errors import MeasurementError, UsageError
from pytest_llmperf.metrics import Scalar
from pytest_llmperf.models.attention import attention_of
from pytest_llmperf.models.load import as_it_is, check_whole
from pytest_llmperf.models.position_limit import check_fits, longest_request
from pytest_llmperf.system.interrupts import uninterrupted
from pytest_llmperf.text import first_line

if TYPE_CHECKING:
    from pytest_llmperf.models.load import LoadedModel

POLL_S = 0.5
"""Longest wait, in seconds, before checking again that the scheduler's thread is alive."""
STUCK_S = 1800.0
"""Longest time of one step, in seconds: half an hour, for a large model's prefill of thousands of tokens on a CPU."""
STOP_S = 60.0
"""Longest wait, in seconds, for the scheduler's thread to end."""


class TransformersEngine:
    """Serves a model that is loaded in this process.

    Args:
        loaded: the model, which remains owned by its loader.
    """

    name = "transformers"

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._set_up: _SetUp | None = None
        self._manager: Any = None

    @property
    def model(self) -> Mapping[str, str | None]:
        """The model as loaded; an attention switched to for serving is part of the settings."""
        loaded = as_it_is(self._loaded)
        return {
            "model": loaded.name,
            "revision": loaded.revision,
            "quantization": loaded.quantization,
            "dtype": loaded.dtype,
            "attention": self._loaded.attention,
        }

    @property
    def settings(self) -> Mapping[str, Scalar]:
        """The model's settings, and those of ``generate``, or while it is set up those of continuous batching."""
        settings = as_it_is(self._loaded).settings
        if self._manager is None:
            return {**settings, **self._generation.recorded}
        resolved = self._manager.continuous_batching_config
        return {
            **settings,
            "serving_attention": attention_of(self._loaded.model),
            "cache_blocks": resolved.num_blocks,
            "block_tokens": resolved.page_size,
            "step_tokens": resolved.max_batch_tokens,
            "graphs": any(resolved.cuda_graph_booleans),
            "async_batching": resolved.use_async_batching,
            **self._sharing(),
        }

    @property
    def device(self) -> str:
        """The model's device."""
        return self._loaded.device

    @property
    def vocabulary(self) -> int:
        """The model's vocabulary size."""
        return int(self._text_config.vocab_size)

    @property
    def longest(self) -> int | None:
        """As many as fit the model's positions."""
        return longest_request(self._loaded.model.config)

    @property
    def _generation(self) -> GenerationSettings:
        """What a single request takes from the model's generation config; continuous batching takes nothing."""
        return GenerationSettings.of(self._loaded.model, batch_size=1)

    def serve_one(self, request: EngineRequest, sampling: Sampling) -> EngineResponse:
        """Serve a single request with ``generate``; its streamer receives tokens that are already on the host.

        Raises:
            MeasurementError: another number of tokens was produced.
            UsageError: the model's generation config asks for what cannot be measured, or the request exceeds the
                model's limit.
        """
        import torch

        check_whole(self._loaded.model)
        check_fits(self._loaded.model.config, input_tokens=len(request.prompt), output_tokens=request.output_tokens)
        self.release()
        stamps: list[tuple[float, int]] = []
        settings = self._generation

        def on_token(count: int = 1, /) -> None:
            stamps.append((time.perf_counter() - begin, count))

        with measuring_conditions():
            prompt = torch.tensor([request.prompt], device=self.device)
            begin = time.perf_counter()
            generated = library_generate(
                self._loaded.model,
                prompt,
                request.output_tokens,
                on_token,
                settings=settings,
                **_chosen(sampling),
            )
        counted = sum(count for _, count in stamps)
        check_produced(generated, batch_size=1, output_tokens=request.output_tokens, counted=counted)
        return _response(stamps, sent_s=0.0, input_tokens=len(request.prompt))

    def serve(
        self, requests: Sequence[EngineRequest], *, max_concurrency: int, sampling: Sampling
    ) -> list[EngineResponse]:
        """Serve requests with continuous batching, whose thread runs until `release`.

        Raises:
            MeasurementError: a request failed or produced another number of tokens.
            RuntimeError: the thread failed.
            UsageError: this transformers version has no continuous batching, or not for this model.
        """
        check_whole(self._loaded.model)
        with measuring_conditions(), self._let_go_on_failure():
            self._prepare(_SetUp.of(requests, max_concurrency, sampling))
            return _Schedule(self._manager, requests).responses()

    def release(self) -> None:
        """Stop the scheduler's thread, free its KV cache, and restore the model's attention."""
        manager, self._manager, self._set_up = self._manager, None, None
        if manager is not None:
            with uninterrupted():
                manager.stop(block=True, timeout=STOP_S, hard_stop=True)
        if not self._loaded.closed and attention_of(self._loaded.model) != self._loaded.attention:
            self._loaded.model.set_attn_implementation(self._loaded.attention)

    def close(self) -> None:
        """Same as `release`: the loader releases the model."""
        self.release()

    @property
    def _text_config(self) -> Any:
        return self._loaded.model.config.get_text_config()

    def _sharing(self) -> dict[str, Scalar]:
        """Whether blocks are in fact shared, where prompts have a shared prefix: some models' caches cannot."""
        if self._set_up is None or not self._set_up.sharing:
            return {}
        return {"block_sharing": getattr(self._manager, "_use_prefix_sharing", None)}

    def _prepare(self, wanted: _SetUp) -> None:
        """Start continuous batching, unless the running one has enough capacity."""
        if self._set_up is None or not self._set_up.serves(wanted):
            self.release()
            self._manager = wanted.manager(self._loaded)
            self._set_up = wanted
            self._manager.start()

    @contextmanager
    def _let_go_on_failure(self) -> Iterator[None]:
        """Release everything on failure. If the thread failed, raise its error as the cause."""
        try:
            yield
        except BaseException:
            manager = self._manager
            self.release()
            broken = manager.background_thread_status.fatal_error if manager else None
            if broken is not None:
                raise RuntimeError(f"continuous batching failed: {type(broken).__name__}: {broken}") from broken
            raise


@dataclass(frozen=True)
class _SetUp:
    """The capacity and sampling that continuous batching is set up for."""

    max_concurrency: int
    sampling: Sampling
    lengths: tuple[int, ...]
    """Prompt and output tokens of the longest requests that may run concurrently, longest first."""
    sharing: bool = False
    """Whether prompts share a prefix, whose cache they may share as well."""

    @classmethod
    def of(cls, requests: Sequence[EngineRequest], max_concurrency: int, sampling: Sampling) -> _SetUp:
        lengths = sorted((len(request.prompt) + request.output_tokens for request in requests), reverse=True)
        sharing = any(request.shared_prefix for request in requests)
        return cls(max_concurrency, sampling, tuple(lengths[:max_concurrency]), sharing)

    def serves(self, other: _SetUp) -> bool:
        mine, others = ((one.max_concurrency, one.sampling, one.sharing) for one in (self, other))
        pairs = zip_longest(self.lengths, other.lengths, fillvalue=0)
        return mine == others and all(length >= wanted for length, wanted in pairs)

    def manager(self, loaded: LoadedModel) -> Any:
        """Create a manager whose cache just fits the longest requests that may run concurrently.

        By default the cache takes most of the free memory, which differs between runs. Blocks are shared only where
        prompts have a shared prefix, because otherwise every pass repeats the same prompts. The requested attention is
        kept, where it supports batching.
        """
        batching, generation = _library(loaded)
        config = batching(
            max_requests_per_batch=self.max_concurrency,
            allow_block_sharing=self.sharing,
            auto_switch_to_flash=False,
            safety_margin=0.0,
        )
        config.num_blocks = sum(ceil(length / config.page_size) for length in self.lengths)
        drawing = generation(eos_token_id=-1, max_new_tokens=self.lengths[0], **_chosen(self.sampling))
        try:
            return loaded.model.init_continuous_batching(generation_config=drawing, continuous_batching_config=config)
        except (AttributeError, NotImplementedError, ValueError) as error:
            reason = first_line(error).rstrip(".")
            raise UsageError(
                f"transformers {version('transformers')} cannot serve {loaded.title} with continuous batching: "
                f"{reason}: use the naive scheduler or another attention"
            ) from error


class _Schedule:
    """Submits requests when they are due, and collects the results."""

    def __init__(self, manager: Any, requests: Sequence[EngineRequest]) -> None:
        self._manager = manager
        self._requests = requests
        self._due = deque(sorted(range(len(requests)), key=lambda number: requests[number].arrival_s))
        self._sent: dict[str, tuple[int, float]] = {}
        self._responses: dict[int, EngineResponse] = {}
        self._begin = 0.0

    def responses(self) -> list[EngineResponse]:
        """Serve all requests; return their responses in order."""
        with self._manager.pause():  # requests due at the start must be queued before the first step
            self._begin = time.perf_counter()
            self._send_due()
        steps, since = self._steps, time.perf_counter()
        while len(self._responses) < len(self._requests):
            self._send_due()
            if result := self._manager.get_result(timeout=self._wait_s()):
                self._take(result)
            elif not self._manager.is_running():
                raise MeasurementError("continuous batching ended before all requests were served")
            if self._steps != steps:
                steps, since = self._steps, time.perf_counter()
            elif not self._due and time.perf_counter() - since > STUCK_S:
                raise MeasurementError(f"continuous batching made no step in {STUCK_S:g} s")
        return [self._responses[number] for number in range(len(self._requests))]

    @property
    def _steps(self) -> int:
        return int(self._manager.current_batch)

    def _elapsed(self) -> float:
        return time.perf_counter() - self._begin

    def _wait_s(self) -> float:
        """Seconds until the next request is due, at most `POLL_S`."""
        return min(POLL_S, max(0.0, self._requests[self._due[0]].arrival_s - self._elapsed())) if self._due else POLL_S

    def _send_due(self) -> None:
        while self._due and self._requests[self._due[0]].arrival_s <= self._elapsed():
            number = self._due.popleft()
            request, sent = self._requests[number], self._elapsed()
            name = self._manager.add_request(
                list(request.prompt), max_new_tokens=request.output_tokens, eos_token_id=-1, record_timestamps=True
            )
            self._sent[name] = (number, sent)

    def _take(self, result: Any) -> None:
        number, sent = self._sent[result.request_id]
        if result.error is not None:
            raise MeasurementError(f"request {number} failed: {first_line(result.error)}")
        request, produced = self._requests[number], len(result.generated_tokens)
        stamps = [(stamp - self._begin, 1) for stamp in result.timestamps]
        if not produced == len(stamps) == request.output_tokens:
            raise MeasurementError(
                f"request {number}: {produced} tokens, {len(stamps)} timestamps; expected {request.output_tokens}"
            )
        self._responses[number] = _response(stamps, sent_s=sent, input_tokens=len(request.prompt))


def _library(loaded: LoadedModel) -> tuple[Any, Any]:
    """The library's classes for the batching config and the generation config.

    Raises:
        UsageError: this transformers has no continuous batching, or an early form of it.
    """
    import transformers

    batching = getattr(transformers, "ContinuousBatchingConfig", None)
    # Before 5.19, pages were called blocks, the requested attention could not be kept, and managers could not pause.
    if not hasattr(batching, "auto_switch_to_flash") or not hasattr(loaded.model, "init_continuous_batching"):
        raise UsageError(
            f"transformers {transformers.__version__} has no usable continuous batching; expected 5.19 or "
            "later: pip install --upgrade transformers, or use the naive scheduler"
        )
    return batching, transformers.GenerationConfig


def _chosen(sampling: Sampling) -> dict[str, Any]:
    """Arguments of ``GenerationConfig``. Its default ``top_k`` is 50, so "all tokens" must be explicit."""
    if sampling.temperature == 0:
        return {"do_sample": False}
    return {
        "do_sample": True,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k or 0,
        "top_p": 1.0 if sampling.top_p is None else sampling.top_p,
    }


def _response(stamps: Sequence[tuple[float, int]], *, sent_s: float, input_tokens: int) -> EngineResponse:
    """The response whose tokens came at these seconds, with their number."""
    times, counts = [at for at, _ in stamps], [count for _, count in stamps]
    gaps = tuple(after - before for before, after in pairwise(times))
    return EngineResponse(
        sent_s=sent_s,
        first_s=times[0],
        last_s=times[-1],
        input_tokens=input_tokens,
        output_tokens=sum(counts),
        first_tokens=counts[0],
        gaps_s=gaps if set(counts) == {1} else None,
    )
