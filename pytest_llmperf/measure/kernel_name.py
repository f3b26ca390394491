"""Names of callables and their arguments that are the same in every run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

LONGEST = 200


def call_name(fn: Callable[..., object]) -> str:
    """The callable's name, without ``functools.partial``; its type's name if it has none."""
    while isinstance(fn, partial):
        fn = fn.func
    return str(getattr(fn, "__name__", type(fn).__name__))


def arguments_of(call: partial[object], *, of: int = 1) -> str:
    """The bound arguments as text: ``float32[8, 16], dim=1``; of several sets, the first and their number."""
    positional, named = _bound(call)
    words = [*map(_word, positional), *(f"{name}={_word(value)}" for name, value in sorted(named.items()))]
    text = ", ".join(words) + (f"; {of} sets" if of > 1 else "")
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _bound(call: partial[object]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Bound arguments of nested partials. ``functools.partial`` flattens them itself, except subclasses and methods."""
    inner = _bound(call.func) if isinstance(call.func, partial) else ((), {})
    return (*inner[0], *call.args), {**inner[1], **call.keywords}


def _word(value: object) -> str:
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, bool | int | float | str | None):
        return repr(value)
    return type(value).__name__
