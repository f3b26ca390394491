"""Validation of arguments: numbers and names."""

from __future__ import annotations

import math

from pytest_llmperf.errors import UsageError


def require_whole(name: str, value: object, *, at_least: int) -> None:
    """Check that a value is an integer of at least ``at_least``.

    Raises:
        UsageError: it is not; the message names the argument, its value and the expected range.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise UsageError(f"{name}={value!r}: expected a whole number of at least {at_least}")


def require_text(name: str, value: object) -> None:
    """Check that a value is a text with other characters than spaces.

    Raises:
        UsageError: it is not; the message names the argument and its value.
    """
    __tracebackhide__ = True
    if not isinstance(value, str) or not value.strip():
        raise UsageError(f"{name}={value!r}: expected a non-empty string")


def require_positive(name: str, value: object) -> None:
    """Check that a value is a finite number above 0.

    Raises:
        UsageError: it is not; the message names the argument, its value and the expected range.
    """
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise UsageError(f"{name}={value!r}: expected a number above 0")
