"""What arguments of measuring must be."""

from __future__ import annotations

import math

from pytest_llmperf.errors import UsageError


def require_whole(name: str, value: object, *, at_least: int) -> None:
    """Refuse all but whole numbers from ``at_least`` on.

    Raises:
        UsageError: the value is something else; the message names the argument, what was found and what was expected.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise UsageError(f"{name}={value!r}: expected a whole number of at least {at_least}")


def require_positive(name: str, value: object) -> None:
    """Refuse all but finite numbers above 0.

    Raises:
        UsageError: the value is something else; the message names the argument, what was found and what was expected.
    """
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise UsageError(f"{name}={value!r}: expected a number above 0")
