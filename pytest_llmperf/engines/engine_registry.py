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


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A run's options for an engine that has its own model."""

    model: str | None
    revision: str | None
    base_url: str | None
    device: str
    """The torch device."""


@dataclass(frozen=True)
class Choice:
    """An engine that has its own model and is created once per run."""

    check: Callable[[Wanted], None]
    """Checks the options before anything is measured. Raises UsageError if they do not fit the engine."""
    make: Callable[[Wanted], Engine]
    """Creates the engine, importing its packages. Raises ModelError if the model is not available."""


def _check_server(wanted: Wanted) -> None:
    from pytest_llmperf.engines.openai import check_server

    if not wanted.base_url:
        raise UsageError("--llmperf-engine openai needs a server: pass --llmperf-base-url http://HOST:PORT/v1")
    if wanted.revision:
        raise UsageError(
            f"--llmperf-revision {wanted.revision}: a server chooses the revision itself: leave the option out"
        )
    check_server(wanted.base_url, wanted.model)


def _server(wanted: Wanted) -> Engine:
    from pytest_llmperf.engines.openai import OpenAIEngine

    return OpenAIEngine(wanted.base_url or "", model=wanted.model)


def _check_vllm(wanted: Wanted) -> None:
    from pytest_llmperf.engines.vllm import check_vllm

    if wanted.base_url:
        raise UsageError(
            f"--llmperf-base-url {wanted.base_url}: the vllm engine runs in this process; "
            "for a vllm server, use --llmperf-engine openai"
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
"""Engines that have their own model."""


def check_engine_name(name: str) -> str:
    """Check the name of an engine and return it.

    Raises:
        UsageError: the engine is unknown.
    """
    if name not in (TRANSFORMERS, *ENGINES):
        raise UsageError(f"unknown engine {name!r}: expected one of {', '.join((TRANSFORMERS, *ENGINES))}")
    return name
