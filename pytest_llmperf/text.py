"""Text that came from outside, made safe to show or to name a file."""

from __future__ import annotations

import re


def printable(text: str) -> str:
    """The text with control characters escaped: a test's id or a model's name must not steer the terminal."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def slug(name: str) -> str:
    """A device's name as part of a file's name: lower case, without marks, clock rates and filler words."""
    plain = re.sub(r"\((?:r|tm)\)|@.*|\b(?:cpu|processor|with)\b|\b\d+-core\b", " ", name.lower())
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-") or "unknown"
