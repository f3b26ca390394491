"""Dynamo, the front end of ``torch.compile``: settings, compilation counters, and reset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

from pytest_llmperf.errors import LlmperfError, MeasurementError, UsageError
from pytest_llmperf.hardware.device import require_models_extra

Setting = bool | int | str

_ALL = 1_000_000
"""Compilations to keep in memory; dynamo's default is the last 64."""


def parse_settings(text: str) -> dict[str, Setting]:
    """Parse ``NAME=VALUE,...``: names of ``torch._dynamo.config``; values are ``true``, ``false``, integers or words.

    Raises:
        UsageError: the text is malformed.
    """
    pairs = [part.strip().partition("=") for part in text.split(",") if part.strip()]
    if wrong := next(("".join(pair) for pair in pairs if not (pair[0] and pair[2])), ""):
        raise UsageError(f"--llmperf-dynamo {wrong!r}: expected NAME=VALUE with a name of torch._dynamo.config")
    return {name: _value(word) for name, _, word in pairs}


def check_settings(settings: Mapping[str, Setting]) -> None:
    """Reject settings that ``torch._dynamo.config`` lacks, and values of the wrong type. Imports torch.

    Raises:
        UsageError: a setting is unknown or of the wrong type; ``MissingDependency`` without torch.
    """
    if not settings:
        return
    require_models_extra()
    from torch import _dynamo as dynamo

    known: dict[str, Any] = dynamo.config.get_config_copy()
    for name, value in settings.items():
        if name not in known:
            raise UsageError(f"dynamo setting {name!r} is unknown: expected one of torch._dynamo.config")
        if known[name] is not None and type(value) is not type(known[name]):
            kind = type(known[name]).__name__
            raise UsageError(f"dynamo setting {name}={value!r}: expected type {kind}, such as {known[name]!r}")


def known_backends() -> list[str]:
    """Names of the backends of ``torch.compile``. Imports torch.

    Raises:
        MissingDependency: torch is not installed.
    """
    require_models_extra()
    from torch import _dynamo as dynamo

    return list(dynamo.list_backends(exclude_tags=None))


class Compilations:
    """Dynamo's compilations and counters since its reset."""

    @property
    def reasons(self) -> list[str]:
        """Recompile reason of each compilation that was tried; empty for a frame's first."""
        from torch._dynamo.utils import get_compilation_metrics

        return [found.recompile_reason or "" for found in get_compilation_metrics()]

    def count(self, group: str, name: str | None = None) -> int:
        """One of dynamo's counters, or the sum of a group."""
        from torch._dynamo.utils import counters

        return counters[group][name] if name else sum(counters[group].values())


@contextmanager
def fresh_dynamo(settings: Mapping[str, Setting]) -> Iterator[Compilations]:
    """Reset dynamo, apply settings in the block, and discard all compiled code at its end.

    Reaching the recompile limit is an error here: by default dynamo would silently continue eagerly.

    Raises:
        MeasurementError: dynamo failed in the block.
    """
    from torch import _dynamo as dynamo

    dynamo.reset()
    dynamo.utils.counters.clear()
    dynamo.utils.clear_compilation_metrics()
    dynamo.utils.set_compilation_metrics_limit(_ALL)
    try:
        with dynamo.config.patch({"fail_on_recompile_limit_hit": True, **settings}):
            yield Compilations()
    except (dynamo.exc.TorchDynamoException, dynamo.exc.FailOnRecompileLimitHit) as error:
        raise MeasurementError(f"torch.compile: {_one_line(error)}") from error
    finally:
        dynamo.utils.set_compilation_metrics_limit(dynamo.utils.DEFAULT_COMPILATION_METRICS_LIMIT)
        dynamo.reset()


@cache
def obstacle(device: str, backend: str) -> str:
    """Why nothing can be compiled for a device, found by compiling a probe; empty if it works."""
    import torch

    try:
        torch.compile(_probe, backend=backend)(torch.ones(8, device=device))
    except LlmperfError:  # time limits raise LlmperfError
        raise
    except Exception as error:  # noqa: BLE001  # each missing tool raises its own exception
        return _one_line(error)
    return ""


def _probe(x: Any) -> Any:
    return x.sin() + 1


def _value(word: str) -> Setting:
    if word.lower() in ("true", "false"):
        return word.lower() == "true"
    try:
        return int(word)
    except ValueError:
        return word


def _one_line(error: Exception) -> str:
    """The first two lines of the message: the second often contains the cause."""
    lines = [line.strip() for line in str(error).strip().splitlines()[:2]]
    return " ".join(filter(None, lines)) or type(error).__name__
