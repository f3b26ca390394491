"""Store operator profiles beside a baseline, to explain later regressions.

There is one file per device, ``profiles/<device-key>.json`` in the baseline folder. Profiles never affect a verdict.
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
    """Return the path of a device's profiles, in a subfolder because every JSON file beside it is a baseline."""
    return baselines / "profiles" / f"{device_key}.json"


def parse_profiles(text: str, *, name: str) -> ProfileFile:
    """Parse a profile file's text; errors name its source as ``name``.

    Raises:
        BaselineError: it is not a profile file.
    """
    try:
        return ProfileFile.model_validate_json(text)
    except ValidationError as error:
        raise BaselineError(
            f"{name}: {first_problem(error)}. Delete it; the next recorded run creates it again"
        ) from error


def load_profiles(path: Path) -> ProfileFile | None:
    """Load and validate a profile file; return ``None`` if it does not exist.

    Raises:
        BaselineError: it cannot be read, or is not a profile file.
    """
    try:
        return parse_profiles(path.read_text(encoding="utf-8"), name=str(path))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise BaselineError(f"cannot read profiles {path}: {reason}") from error


def run_of(file: ProfileFile, key: Key) -> Run | None:
    """Return the run of a workload's profile; ``None`` if there is no such profile."""
    name = next((one.run for one in file.profiles if one.key == key), None)
    return next((run for run in file.runs if run.run_id == name), None)


def comparable(file: ProfileFile, environment: Mapping[str, Scalar]) -> dict[Key, Phases]:
    """Return the profiles of runs that are comparable with an environment."""
    runs = {run.run_id for run in file.runs if not blocking(compare_environments(run.environment, environment))}
    return {one.key: one.phases for one in file.profiles if one.run in runs}


def keep_profiles(path: Path, device_key: str, run: Run, found: Mapping[Key, Phases], *, of: AbstractSet[Key]) -> None:
    """Replace the stored profiles of the same workloads by a run's; drop profiles whose key is not in ``of``.

    Raises:
        BaselineError: the file cannot be read, locked or written, or is invalid.
    """
    with locked(path):
        present = load_profiles(path) or ProfileFile(device_key=device_key)
        new = [
            StoredProfile(test=test, workload=workload, run=run.run_id, phases=dict(phases))
            for (test, workload), phases in found.items()
        ]
        profiles = [one for one in [*new, *present.profiles] if one.key in of]
        latest = {one.key: one for one in reversed(profiles)}  # the new profile, which is first, wins
        runs = {one.run_id: one for one in [*present.runs, run]}
        used = {one.run for one in latest.values()}
        kept = ProfileFile(
            device_key=device_key,
            runs=[one for name, one in runs.items() if name in used],
            profiles=list(latest.values()),
        )
        replace_file(path, _dump(kept))


def _dump(file: ProfileFile) -> str:
    """Serialize the file, sorted and one record per line, as in a baseline."""
    blocks = [
        f'"schema_version": {file.schema_version}',
        f'"device_key": {json.dumps(file.device_key)}',
        list_block("runs", file.runs, lambda run: (run.time, run.run_id)),
        list_block("profiles", file.profiles, lambda one: one.key),
    ]
    return "{\n" + ",\n".join(blocks) + "\n}\n"
