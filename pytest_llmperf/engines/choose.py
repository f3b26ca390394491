"""Which engine serves the requests of a run: transformers over the models that tests ask for, or one with its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pytest_llmperf.engines.engine import Engine
from pytest_llmperf.errors import UsageError

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


ENGINES: Mapping[str, Choice] = {}
"""Those with a model of their own."""


def check_engine_name(name: str) -> str:
    """The name of an engine.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in (TRANSFORMERS, *ENGINES):
        raise UsageError(f"unknown engine {name!r}: expected one of {', '.join((TRANSFORMERS, *ENGINES))}")
    return name
