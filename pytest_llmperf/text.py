"""Text that came from outside, made safe to show or to name a file."""

from __future__ import annotations

import re
from collections.abc import Sequence


def printable(text: str) -> str:
    """The text with control characters escaped: a test's id or a model's name must not steer the terminal."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def short_name(test: str) -> str:
    """A test's name without its file and class; its parameters may hold colons: ``test_decode[aten::mm]``."""
    name, bracket, parameters = test.partition("[")
    return f"{name.rpartition('::')[2]}{bracket}{parameters}"


def cut(name: str, width: int) -> str:
    """The name in at most ``width`` characters: of a test's, the end tells its parameters."""
    if len(name) <= width:
        return name
    tail = max(width - 1, 0) // 2
    return f"{name[: max(width - 1, 0) - tail]}…{name[len(name) - tail :]}"


def first_line(told: object) -> str:
    """The first line of an error, or of what it told: libraries put advice and traces below it."""
    return str(told).strip().partition("\n")[0]


def plural(number: int, noun: str) -> str:
    """So many of them: ``1 run``, ``2 runs``."""
    return f"{number} {noun}{'s' * (number != 1)}"


def some(names: Sequence[str], most: int) -> str:
    """The first few of many names, printable, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(printable, names[:most])) + more


HASH_DIGITS = 8


def short_hash(digest: str) -> str:
    """The first digits of a commit's or a digest's hash: enough to tell it from others."""
    return digest[:HASH_DIGITS]


def slug(name: str) -> str:
    """A device's name as part of a file's name: lower case, without marks, clock rates and filler words."""
    plain = re.sub(r"\((?:r|tm)\)|@.*|\b(?:cpu|processor|with)\b|\b\d+-core\b", " ", name.lower())
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-") or "unknown"
