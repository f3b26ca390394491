"""Models whose decode steps read a number back from the device because transformers is written that way."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from packaging.version import Version

STATIC_CACHE = Version("5.4")
"""The first transformers whose models keep the length of a static cache on the device."""
LONGROPE = Version("5.21")
"""The first transformers that chooses between the frequencies of ``longrope`` on the device."""

MODELS = frozenset({"biogpt", "ctrl", "jetmoe", "mpt", "opt"})
"""Types of models whose forward reads back by itself, to make masks, positions or groups of experts."""


def why_read_back(config: Any) -> str:
    """Why each step of a model over a static cache waits for the device; empty if it does not.

    It is decided from the config and the version alone: a synchronization that somebody adds must not be excused.
    """
    installed = Version(version("transformers"))
    if installed < STATIC_CACHE:
        return f"transformers {installed} reads the static cache's length back in each step: {_upgrade(STATIC_CACHE)}"
    text = config.get_text_config()
    if text.model_type in MODELS:
        return f"models of type {text.model_type!r} read back in each step"
    for kind in sorted(rope_types(text)):
        if "dynamic" in kind:  # as transformers asks
            return f"RoPE of type {kind!r} reads the sequence's length back in each step"
        if kind == "longrope" and installed < LONGROPE:
            return f"RoPE of type 'longrope' reads back in each step of transformers {installed}: {_upgrade(LONGROPE)}"
    return ""


def rope_types(config: Any) -> set[str]:
    """The types of RoPE that the config of a language model names, of all its kinds of layers.

    Up to transformers 4, and in configs of a model's own code, ``rope_parameters`` is ``rope_scaling``; ``rope_type``
    was ``type``.
    """
    found = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kinds = [kind for kind in found.values() if isinstance(kind, Mapping)] or [found]
    return {str(kind.get("rope_type") or kind.get("type") or "default") for kind in kinds}


def _upgrade(needed: Version) -> str:
    return f"expected {needed} or later: pip install --upgrade transformers"
