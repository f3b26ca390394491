"""Text that came from outside, made safe to show."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with control characters escaped: a test's id or a model's name must not steer the terminal."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
