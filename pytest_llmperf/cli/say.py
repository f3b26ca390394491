"""Talking to whoever runs a command."""

from __future__ import annotations


def say(*lines: str) -> None:
    """Print lines at once, also where output is not a terminal."""
    for line in lines:
        print(line, flush=True)  # noqa: T201  # a command talks
