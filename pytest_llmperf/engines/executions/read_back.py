"""Detect models whose decode steps in transformers copy a value from the device and so synchronize."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from packaging.version import Version

STATIC_CACHE = Version("5.4")
"""First transformers version whose models keep the length of a static cache on the device."""
LONGROPE = Version("5.21")
"""First transformers version that selects ``longrope`` frequencies on the device."""

MODELS = frozenset({"biogpt", "ctrl", "jetmoe", "mpt", "opt"})
"""Model types whose forward itself reads values from the device, for masks, positions or expert groups."""


def why_read_back(config: Any) -> str:
    """Why each step over a static cache synchronizes with the device; empty if it does not.

    Decided from the config and the version only, so that a synchronization added by the user is not excused.
    """
    installed = Version(version("transformers"))
    if installed < STATIC_CACHE:
        found = f"transformers {installed} copies the static cache's length to the host in each step"
        return f"{found}: {_upgrade(STATIC_CACHE)}"
    text = config.get_text_config()
    if text.model_type in MODELS:
        return f"models of type {text.model_type!r} copy values to the host in each step"
    for kind in sorted(rope_types(text)):
        if "dynamic" in kind:  # the test that transformers uses
            return f"RoPE of type {kind!r} copies the sequence length to the host in each step"
        if kind == "longrope" and installed < LONGROPE:
            found = f"RoPE of type 'longrope' copies values to the host in each step with transformers {installed}"
            return f"{found}: {_upgrade(LONGROPE)}"
    return ""


def rope_types(config: Any) -> set[str]:
    """The RoPE types named by a language model's config, for all its layer types.

    Up to transformers 4, and in configs of custom model code, ``rope_parameters`` is called ``rope_scaling``.
    ``rope_type`` used to be ``type``.
    """
    found = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kinds = [kind for kind in found.values() if isinstance(kind, Mapping)] or [found]
    return {str(kind.get("rope_type") or kind.get("type") or "default") for kind in kinds}


def _upgrade(needed: Version) -> str:
    return f"expected {needed} or later: pip install --upgrade transformers"
