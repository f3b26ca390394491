"""Folders of the Hugging Face hub's cache: ``models--ORG--NAME/snapshots/COMMIT``."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

_PREFIX = "models--"


class HubSnapshot(NamedTuple):
    """The model and commit that a folder of the cache has."""

    name: str
    commit: str


def hub_snapshot(folder: Path) -> HubSnapshot | None:
    """The model of a folder in the hub's cache; ``None`` if the folder is elsewhere."""
    repository = folder.parent.parent.name
    if folder.parent.name != "snapshots" or not repository.startswith(_PREFIX):
        return None
    return HubSnapshot(repository.removeprefix(_PREFIX).replace("--", "/"), folder.name)
