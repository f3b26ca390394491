"""Migrate baseline files of older schema versions to the current version."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pytest_llmperf.storage.schema import SCHEMA_VERSION

MIGRATIONS: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""Migration from each older version to the next. Version 1 is the first, so there is none yet."""


def migrate(document: Any) -> Any:
    """Return the document in the current schema version.

    Raises:
        ValueError: it has no version, or a newer one.
    """
    version = document.get("schema_version") if isinstance(document, dict) else None
    if type(version) is not int:
        raise ValueError(f"schema_version: expected {SCHEMA_VERSION}, found {version!r}: not a baseline file")
    if version > SCHEMA_VERSION:
        raise ValueError(
            f"schema_version: expected at most {SCHEMA_VERSION}, found {version}: upgrade pytest-llmperf to read it"
        )
    while version < SCHEMA_VERSION:
        if version not in MIGRATIONS:
            raise ValueError(f"schema_version: expected {SCHEMA_VERSION}, found {version}, which never existed")
        document = MIGRATIONS[version](document)
        version += 1
    return document
