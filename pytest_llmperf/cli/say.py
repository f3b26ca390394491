"""Output of the commands."""

from __future__ import annotations


def say(*lines: str) -> None:
    """Print lines and flush, even if output is not a terminal."""
    for line in lines:
        print(line, flush=True)  # noqa: T201  # a command prints
