"""Detection of tools that trace Python code and slow it down: coverage, debuggers, profilers."""

from __future__ import annotations

import sys
import threading
import tracemalloc
from collections.abc import Iterator

NOT_TRACED = "none"
_TOOL_IDS = range(6)
"""Tool ids of ``sys.monitoring``, which is new in Python 3.12."""


def tracing() -> str:
    """Return the names of tools that trace this thread or new ones, such as ``coverage``; ``none`` without any."""
    return " ".join(sorted(set(_tracers()))) or NOT_TRACED


def changed_tracing(then: str, now: str) -> str:
    """Return why timings are not comparable: tracing differs from what the run recorded. Empty if it is the same."""
    return "" if then == now else f"tracing changed since the run began: {then} -> {now}"


def _tracers() -> Iterator[str]:
    hooks = (sys.gettrace(), sys.getprofile(), threading.gettrace(), threading.getprofile())
    yield from (_package(hook) for hook in hooks if hook is not None)
    if monitoring := getattr(sys, "monitoring", None):
        yield from (name for number in _TOOL_IDS if (name := monitoring.get_tool(number)))
    if tracemalloc.is_tracing():
        yield "tracemalloc"


def _package(hook: object) -> str:
    """Return the package of a hook, which is a function or an object with a type of its own."""
    module = getattr(hook, "__module__", None) or type(hook).__module__
    return str(module).partition(".")[0]
