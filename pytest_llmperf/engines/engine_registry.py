"""Registry of engines: transformers, which serves the tests' models, and engines with their own model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_llmperf.engines.engine import Engine
from pytest_llmperf.errors import UsageError

if TYPE_CHECKING:
    from pytest_llmperf.models.spec import ModelSpec

TRANSFORMERS = "transformers"
"""Serves models loaded in this process, one for each spec that a test requests."""
SERVER = "openai"
"""A server, which has loaded its model itself."""


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """A run's options for an engine that has its own model."""

    model: str | None
    revision: str | None
    base_url: str | None
    device: str
    """The torch device."""
    trust_remote_code: bool = False
    """Whether code that comes with the model may run."""
    prefix_caching: bool = False
    """Whether an engine in this process may keep the KV cache of prompts for later ones."""


@dataclass(frozen=True)
class EngineFactory:
    """An engine that has its own model and is created once per run."""

    check: Callable[[EngineOptions], None]
    """Checks the options before anything is measured. Raises UsageError if they do not fit the engine."""
    make: Callable[[EngineOptions], Engine]
    """Creates the engine, importing its packages. Raises ModelError if the model is not available."""


def _check_server(options: EngineOptions) -> None:
    from pytest_llmperf.engines.openai import check_server

    if not options.base_url:
        raise UsageError("--llmperf-engine openai needs a server: pass --llmperf-base-url http://HOST:PORT/v1")
    if options.revision:
        raise UsageError(
            f"--llmperf-revision {options.revision}: a server chooses the revision itself: leave the option out"
        )
    if options.trust_remote_code:
        raise UsageError("--llmperf-trust-remote-code: a server loads its model itself: leave the option out")
    check_server(options.base_url, options.model)


def _server(options: EngineOptions) -> Engine:
    from pytest_llmperf.engines.openai import OpenAIEngine

    return OpenAIEngine(options.base_url or "", model=options.model)


def _check_vllm(options: EngineOptions) -> None:
    from pytest_llmperf.engines.vllm import check_vllm

    if options.base_url:
        raise UsageError(
            f"--llmperf-base-url {options.base_url}: the vllm engine runs in this process; "
            "for a vllm server, use --llmperf-engine openai"
        )
    check_vllm(_spec(options), options.device)


def _vllm(options: EngineOptions) -> Engine:
    from pytest_llmperf.engines.vllm import VllmEngine

    return VllmEngine(_spec(options), options.device, prefix_caching=options.prefix_caching)


def _spec(options: EngineOptions) -> ModelSpec:
    from pytest_llmperf.models.source import default_model
    from pytest_llmperf.models.spec import ModelSpec

    return ModelSpec(
        model=options.model or default_model(options.device),
        revision=options.revision,
        trust_remote_code=options.trust_remote_code,
    )


ENGINES: Mapping[str, EngineFactory] = {
    SERVER: EngineFactory(_check_server, _server),
    "vllm": EngineFactory(_check_vllm, _vllm),
}
"""Engines that have their own model."""


def check_engine_name(name: str) -> str:
    """Check the name of an engine and return it.

    Raises:
        UsageError: the engine is unknown.
    """
    if name not in (TRANSFORMERS, *ENGINES):
        raise UsageError(f"unknown engine {name!r}: expected one of {', '.join((TRANSFORMERS, *ENGINES))}")
    return name
