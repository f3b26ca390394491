"""Text helpers: escape untrusted text, shorten names, format counts and make file names."""

from __future__ import annotations

import re
from collections.abc import Sequence


def printable(text: str) -> str:
    """Escape control characters, so that a test's id or a model's name cannot control the terminal."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def short_name(test: str) -> str:
    """Return a test's name without file and class; parameters may hold colons: ``test_decode[aten::mm]``."""
    name, bracket, parameters = test.partition("[")
    return f"{name.rpartition('::')[2]}{bracket}{parameters}"


def cut(name: str, width: int) -> str:
    """Shorten a name to ``width`` characters in the middle, since the end shows a test's parameters."""
    if len(name) <= width:
        return name
    tail = max(width - 1, 0) // 2
    return f"{name[: max(width - 1, 0) - tail]}…{name[len(name) - tail :]}"


def first_line(told: object) -> str:
    """Return the first line of an error or a message; libraries add advice and traces below it."""
    return str(told).strip().partition("\n")[0]


def error_line(error: BaseException) -> str:
    """Format an error as its type and the first line of its message."""
    return f"{type(error).__name__}: {first_line(error)}"


def plural(number: int, noun: str) -> str:
    """Format a count with its noun: ``1 run``, ``2 runs``."""
    return f"{number} {noun}{'s' * (number != 1)}"


def some(names: Sequence[str], most: int) -> str:
    """List the first ``most`` names, escaped, and the number of the others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(printable, names[:most])) + more


HASH_DIGITS = 8


def short_hash(digest: str) -> str:
    """Return the first digits of a commit or digest, enough to tell it from others."""
    return digest[:HASH_DIGITS]


def slug(name: str) -> str:
    """Return a device's name for a file name: lower case, without marks, clock rates and filler words."""
    plain = re.sub(r"\((?:r|tm)\)|@.*|\b(?:cpu|processor|with)\b|\b\d+-core\b", " ", name.lower())
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-") or "unknown"
