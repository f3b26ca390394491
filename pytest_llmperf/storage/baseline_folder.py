"""Read all baselines of a folder, in the working tree or at a git revision: counted figures of each may decide."""

from __future__ import annotations

from pathlib import Path

from pytest_llmperf.errors import BaselineError
from pytest_llmperf.storage.baseline_file import baseline_path, load_baseline, parse_baseline
from pytest_llmperf.storage.schema import Baseline
from pytest_llmperf.system.git import file_at, files_at


def read_baselines(folder: Path) -> dict[str, Baseline]:
    """Return the baselines of a folder by device key.

    Raises:
        BaselineError: one of the files cannot be read, is invalid, or has the name of another device.
    """
    return {path.stem: _of_device(path.stem, load_baseline(path), str(path)) for path in sorted(folder.glob("*.json"))}


def parse_baselines(texts: dict[str, str], *, revision: str) -> dict[str, Baseline]:
    """Return the baselines with these texts by device key; errors name ``revision`` as their source.

    Raises:
        BaselineError: one of the texts is invalid, or has the name of another device.
    """
    found = {}
    for key, text in texts.items():
        name = f"{revision}:{key}.json"
        found[key] = _of_device(key, parse_baseline(text, name=name), name)
    return found


def texts_at(root: Path, revision: str, folder: Path) -> dict[str, str]:
    """Return the text of each baseline file of a folder at a revision of the repository around ``root``, by device key.

    Raises:
        BaselineError: there is no such revision.
    """
    keys = [Path(name).stem for name in files_at(root, revision, folder) if name.endswith(".json")]
    return {key: file_at(root, revision, baseline_path(folder, key)) for key in keys}


def _of_device(key: str, baseline: Baseline, name: str) -> Baseline:
    if baseline.device_key != key:
        raise BaselineError(
            f"{name}: device_key: expected {key!r}, found {baseline.device_key!r}. "
            "Rename the file, or move it out of the folder"
        )
    return baseline
