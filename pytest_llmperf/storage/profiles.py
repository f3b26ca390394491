"""Operator profiles beside a baseline: what a later regression is explained by, where only the baseline is left.

One file a device, ``profiles/<device-key>.json`` in the folder of baselines. It takes no part in any verdict.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path

from pydantic import ValidationError

from pytest_llmperf.errors import BaselineError
from pytest_llmperf.metrics import Scalar
from pytest_llmperf.storage.baseline_file import first_problem, list_block, locked, replace_file
from pytest_llmperf.storage.comparability import blocking, compare_environments
from pytest_llmperf.storage.schema import PhaseProfile, ProfileFile, Run, StoredProfile

Key = tuple[str, str]
"""Test and workload hash."""
Phases = Mapping[str, PhaseProfile]


def profiles_path(baselines: Path, device_key: str) -> Path:
    """Where the profiles of a device lie: in a folder of their own, as every JSON file beside it is a baseline."""
    return baselines / "profiles" / f"{device_key}.json"


def parse_profiles(text: str, *, name: str) -> ProfileFile:
    """A file's text; ``name`` says in errors where it came from.

    Raises:
        BaselineError: it is no such file.
    """
    try:
        return ProfileFile.model_validate_json(text)
    except ValidationError as error:
        raise BaselineError(
            f"{name}: {first_problem(error)}. Delete it: the next recorded run makes it anew"
        ) from error


def load_profiles(path: Path) -> ProfileFile | None:
    """A file, validated; ``None`` if it is not there.

    Raises:
        BaselineError: it cannot be read, or is no such file.
    """
    try:
        return parse_profiles(path.read_text(encoding="utf-8"), name=str(path))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise BaselineError(f"cannot read profiles {path}: {reason}") from error


def run_of(file: ProfileFile, key: Key) -> Run | None:
    """The run that a workload's profile was taken with; ``None`` if there is no such profile."""
    name = next((one.run for one in file.profiles if one.key == key), None)
    return next((run for run in file.runs if run.run_id == name), None)


def comparable(file: ProfileFile, environment: Mapping[str, Scalar]) -> dict[Key, Phases]:
    """The profiles of runs that differ from an environment in nothing that blocks."""
    runs = {run.run_id for run in file.runs if not blocking(compare_environments(run.environment, environment))}
    return {one.key: one.phases for one in file.profiles if one.run in runs}


def keep_profiles(path: Path, device_key: str, run: Run, found: Mapping[Key, Phases], *, of: AbstractSet[Key]) -> None:
    """Put a run's profiles in the place of those of the same workloads; what is not ``of`` the baseline is dropped.

    Raises:
        BaselineError: the file cannot be read, trusted, locked or written.
    """
    with locked(path):
        present = load_profiles(path) or ProfileFile(device_key=device_key)
        new = [
            StoredProfile(test=test, workload=workload, run=run.run_id, phases=dict(phases))
            for (test, workload), phases in found.items()
        ]
        profiles = [one for one in [*new, *present.profiles] if one.key in of]
        latest = {one.key: one for one in reversed(profiles)}  # of two of one workload the new one, which is first
        runs = {one.run_id: one for one in [*present.runs, run]}
        used = {one.run for one in latest.values()}
        kept = ProfileFile(
            device_key=device_key,
            runs=[one for name, one in runs.items() if name in used],
            profiles=list(latest.values()),
        )
        replace_file(path, _dump(kept))


def _dump(file: ProfileFile) -> str:
    """A record a line, sorted, as in a baseline."""
    blocks = [
        f'"schema_version": {file.schema_version}',
        f'"device_key": {json.dumps(file.device_key)}',
        list_block("runs", file.runs, lambda run: (run.time, run.run_id)),
        list_block("profiles", file.profiles, lambda one: one.key),
    ]
    return "{\n" + ",\n".join(blocks) + "\n}\n"
