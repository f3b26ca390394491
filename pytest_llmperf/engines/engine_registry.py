"""Which engine serves the requests of a run: transformers over the models that tests ask for, or one with its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_llmperf.engines.engine import Engine
from pytest_llmperf.errors import UsageError

if TYPE_CHECKING:
    from pytest_llmperf.models.spec import ModelSpec

TRANSFORMERS = "transformers"
"""Serves a model that is loaded here, of each spec that a test asks for."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a run says to an engine that has a model of its own."""

    model: str | None
    revision: str | None
    base_url: str | None
    device: str
    """As torch names it."""


@dataclass(frozen=True)
class Choice:
    """An engine that has a model of its own, made once a run."""

    check: Callable[[Wanted], None]
    """Raises UsageError, before anything is measured, if it cannot be made of that."""
    make: Callable[[Wanted], Engine]
    """Raises ModelError if it cannot be had after all. What it imports is imported here, not before."""


def _check_server(wanted: Wanted) -> None:
    from pytest_llmperf.engines.openai import check_server

    if not wanted.base_url:
        raise UsageError("--llmperf-engine openai asks a server: pass --llmperf-base-url http://HOST:PORT/v1 as well")
    if wanted.revision:
        raise UsageError(f"--llmperf-revision {wanted.revision}: a server is asked for what it serves: leave it out")
    check_server(wanted.base_url, wanted.model)


def _server(wanted: Wanted) -> Engine:
    from pytest_llmperf.engines.openai import OpenAIEngine

    return OpenAIEngine(wanted.base_url or "", model=wanted.model)


def _check_vllm(wanted: Wanted) -> None:
    from pytest_llmperf.engines.vllm import check_vllm

    if wanted.base_url:
        raise UsageError(
            f"--llmperf-base-url {wanted.base_url}: vllm runs here; for vllm serve: --llmperf-engine openai"
        )
    check_vllm(_spec(wanted), wanted.device)


def _vllm(wanted: Wanted) -> Engine:
    from pytest_llmperf.engines.vllm import VllmEngine

    return VllmEngine(_spec(wanted), wanted.device)


def _spec(wanted: Wanted) -> ModelSpec:
    from pytest_llmperf.models.source import default_model
    from pytest_llmperf.models.spec import ModelSpec

    return ModelSpec(model=wanted.model or default_model(wanted.device), revision=wanted.revision)


ENGINES: Mapping[str, Choice] = {"openai": Choice(_check_server, _server), "vllm": Choice(_check_vllm, _vllm)}
"""Those with a model of their own."""


def check_engine_name(name: str) -> str:
    """The name of an engine.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in (TRANSFORMERS, *ENGINES):
        raise UsageError(f"unknown engine {name!r}: expected one of {', '.join((TRANSFORMERS, *ENGINES))}")
    return name
