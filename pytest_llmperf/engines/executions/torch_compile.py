"""Decode compiled by ``torch.compile``, over a static cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from pytest_llmperf.engines.executions.dynamo import (
    Compilations,
    Setting,
    check_settings,
    fresh_dynamo,
    known_backends,
    obstacle,
)
from pytest_llmperf.engines.executions.execution import PreparedExecution
from pytest_llmperf.engines.executions.greedy_loop import Options, step_positions
from pytest_llmperf.engines.executions.request import RequestTimes, Run, time_request
from pytest_llmperf.engines.executions.static_cache import (
    STATIC_NAMES,
    StaticRequest,
    Step,
    cache_argument,
    check_static,
    next_token,
    static_cache,
    tokens_of_loop,
    unlike_loop,
)
from pytest_llmperf.errors import ExecutionUnavailable, MeasurementError, UsageError
from pytest_llmperf.hardware.clock import Clock
from pytest_llmperf.metrics import Figure, Scalar

if TYPE_CHECKING:
    import torch

MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
GRAPH_MODES = ("reduce-overhead", "max-autotune")
"""Modes in which inductor uses CUDA graphs. Where it cannot, it continues without them and only logs it."""
PRECISIONS = ("highest", "high", "medium")

INDUCTOR = "inductor"

SETTLING = 5
"""Most requests until one compiles nothing."""


@dataclass(frozen=True)
class Compile:
    """A decode step compiled by ``torch.compile``, over a static cache; prefill is eager.

    ``generate`` of transformers does the same with ``cache_implementation="static"``.

    Args:
        mode: mode of ``torch.compile``.
        dynamic: ``dynamic`` of ``torch.compile``.
        fullgraph: ``fullgraph`` of ``torch.compile``: a graph break is an error.
        backend: backend of ``torch.compile``.
        matmul_precision: precision of float32 matrix products during the measurement, including prefill.
        dynamo: settings of ``torch._dynamo.config`` during the measurement.

    Raises:
        UsageError: a setting is unknown or of the wrong type.
    """

    name: ClassVar[str] = "compile"

    mode: str = "default"
    dynamic: bool | None = None
    fullgraph: bool = False
    backend: str = INDUCTOR
    matmul_precision: str = "highest"
    dynamo: Mapping[str, Setting] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        _check("mode", self.mode, MODES)
        _check("matmul_precision", self.matmul_precision, PRECISIONS)
        if self.backend != INDUCTOR:
            _check("backend", self.backend, known_backends())
        check_settings(self.dynamo)

    @property
    def settings(self) -> Mapping[str, Scalar]:
        """Settings that determine the compiled code."""
        return {
            "cache": "static",
            "mode": self.mode,
            "dynamic": self.dynamic,
            "fullgraph": self.fullgraph,
            "backend": self.backend,
            "matmul_precision": self.matmul_precision,
            **{f"dynamo.{name}": value for name, value in self.dynamo.items()},
        }

    @contextmanager
    def open(self, model: Any, prompt: torch.Tensor, output_tokens: int, clock: Clock) -> Iterator[PreparedExecution]:
        """Compile with a first request, and repeat until a request compiles nothing.

        Raises:
            ExecutionUnavailable: torch.compile does not work for this device here, or the model does not decode over
                a static cache.
            MeasurementError: compilation failed, compiled nothing, never settled, changed the matmul precision, or made
                no CUDA graphs although the mode asks for them.
            UsageError: a single output token has no decode.
        """
        cache = static_cache(model, prompt, output_tokens)
        self._check_available(prompt.device)
        check_static(model, prompt, self.name)
        name, positions = cache_argument(model) or STATIC_NAMES[0], step_positions(model, prompt, output_tokens)
        with ExitStack() as stack:
            stack.enter_context(_matmul_precision(self.matmul_precision))
            compilations = stack.enter_context(fresh_dynamo(self.dynamo))
            request = StaticRequest(model, cache, prompt, self._compiled(model, cache, name), positions, name)
            run = partial(request, output_tokens)
            cold, generated = time_request(run, clock)
            steady = _settle(run, clock, compilations)
            self._check_graphs(prompt.device, compilations)
            _check_precision(self.matmul_precision)
            tried = len(compilations.reasons)
            unlike = unlike_loop(generated, tokens_of_loop(model, prompt, output_tokens))

            def figures() -> Sequence[Figure]:
                _check_settled(compilations, tried)
                self._check_graphs(prompt.device, compilations)
                return [*_figures(compilations, cold, steady), unlike]

            yield PreparedExecution(request, figures, dispatches=False)

    def _check_available(self, device: torch.device) -> None:
        reason = obstacle(str(device), self.backend)
        if reason:
            raise ExecutionUnavailable(f"execution 'compile' cannot run on {device} here: {reason}")

    def _check_graphs(self, device: torch.device, compilations: Compilations) -> None:
        skipped = compilations.count("inductor", "cudagraph_skips")
        if skipped and device.type == "cuda" and self.mode in GRAPH_MODES:
            raise MeasurementError(
                f"torch.compile: mode {self.mode!r}: inductor skipped CUDA graphs {skipped} times; expected 0: "
                "set TORCH_LOGS=cudagraphs to see the reasons, or use mode 'default'"
            )

    def _compiled(self, model: Any, cache: Any, name: str) -> Step:
        import torch

        def step(token: torch.Tensor, position: Options) -> torch.Tensor:
            return next_token(model, cache, token, position, name=name)

        compiled: Step = torch.compile(
            step, mode=self.mode, dynamic=self.dynamic, fullgraph=self.fullgraph, backend=self.backend
        )
        return compiled


def _check(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UsageError(f"compile: {name} {value!r} is unknown: expected one of {', '.join(known)}")


def _settle(run: Run, clock: Clock, compilations: Compilations) -> RequestTimes:
    """Times of the first request that compiled nothing."""
    if not compilations.count("stats", "unique_graphs"):
        raise MeasurementError("torch.compile compiled nothing, so decode ran eagerly: is TORCHDYNAMO_DISABLE set?")
    for _ in range(SETTLING):
        tried = len(compilations.reasons)
        times, _ = time_request(run, clock)
        if len(compilations.reasons) == tried:
            return times
    raise MeasurementError(f"torch.compile was still compiling in request {SETTLING + 1}: {compilations.reasons[-1]}")


def _check_precision(asked: str) -> None:
    """Check the matmul precision: compiling resets ``medium`` to ``high`` in torch 2.7 and 2.8."""
    import torch

    found = torch.get_float32_matmul_precision()
    if found != asked:
        raise MeasurementError(
            f"torch {torch.__version__} changed matmul_precision {asked!r} to {found!r} during compilation: "
            f"use {found!r}, or pip install --upgrade torch"
        )


def _check_settled(compilations: Compilations, tried: int) -> None:
    reasons = compilations.reasons[tried:]
    if reasons:
        raise MeasurementError(f"torch.compile compiled {len(reasons)} frames during timed requests: {reasons[0]}")


def _figures(compilations: Compilations, cold: RequestTimes, steady: RequestTimes) -> Iterator[Figure]:
    yield Figure("compile_ms", cold.e2e_ms - steady.e2e_ms)
    yield Figure("cold_ttft_ms", cold.ttft_ms)
    yield Figure("graph_breaks", compilations.count("graph_break"))
    yield Figure("unique_graphs", compilations.count("stats", "unique_graphs"))
    yield Figure("recompilations", sum(bool(reason) for reason in compilations.reasons))
    yield Figure("graphs_from_cache", compilations.count("inductor", "fxgraph_cache_hit"))


@contextmanager
def _matmul_precision(precision: str) -> Iterator[None]:
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
