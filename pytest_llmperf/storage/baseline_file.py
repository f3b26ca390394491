"""Read and write baseline files: validated, locked, atomic, one record per line."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, ValidationError

from pytest_llmperf.errors import BaselineError
from pytest_llmperf.storage.journal import read_journal
from pytest_llmperf.storage.merge import trim
from pytest_llmperf.storage.migrations import migrate
from pytest_llmperf.storage.schema import Baseline

LOCK_TIMEOUT_S = 60.0

_Row = TypeVar("_Row", bound=BaseModel)


def baseline_path(folder: Path, device_key: str) -> Path:
    """Return the path of a device's baseline."""
    return folder / f"{device_key}.json"


def baseline_files(path: Path) -> list[Path]:
    """Return the baseline files and journals of a folder, or the given file.

    Raises:
        BaselineError: the folder holds none.
    """
    if not path.is_dir():
        return [path]
    found = [*sorted(path.glob("*.json")), *sorted(path.glob("*.jsonl"))]
    if not found:
        raise BaselineError(f"no baseline under {path}: expected *.json or *.jsonl. Record one: llmperf record")
    return found


def load_baseline(path: Path, *, injected: bool = False) -> Baseline:
    """Load a baseline file, or a run's journal (``.jsonl``), as a validated :class:`Baseline`.

    Args:
        path: path of the file.
        injected: whether a journal may hold numbers changed by ``--llmperf-inject``.

    Raises:
        BaselineError: the file cannot be read, is not JSON or violates the schema; the message names the place.
    """
    text = _read_text(path)
    if path.suffix == ".jsonl":
        return _checked(str(path), lambda: read_journal(text, injected=injected))
    return parse_baseline(text, name=str(path))


def parse_baseline(text: str, *, name: str) -> Baseline:
    """Parse a baseline file's text into a validated :class:`Baseline`; errors name its source as ``name``.

    Raises:
        BaselineError: it is not JSON or violates the schema; the message names the place.
    """
    return _checked(name, lambda: Baseline.model_validate(migrate(_parse(text))))


def update_baseline(path: Path, change: Callable[[Baseline | None], Baseline]) -> Baseline:
    """Read, change and atomically replace a baseline file under its lock.

    ``change`` gets the present baseline, or ``None`` if there is no file yet. Concurrent readers see the old file or
    the new one.

    Raises:
        BaselineError: the file cannot be read, locked or written, or is invalid.
    """
    with locked(path):
        changed = trim(change(load_baseline(path) if path.exists() else None))
        replace_file(path, dump_baseline(changed))
    return changed


def check_writable(path: Path) -> None:
    """Check early that a file can be written, not after minutes of measuring.

    Raises:
        BaselineError: the file or its folder cannot be written.
    """
    probe = path if path.exists() else _nearest_existing(path.parent)
    if not os.access(probe, os.W_OK) or (probe != path and not probe.is_dir()):
        raise BaselineError(
            f"cannot write {path}: {probe} is not writable. Choose another folder with --llmperf-baselines"
        )


def dump_baseline(baseline: Baseline) -> str:
    """Serialize a baseline: sorted, one record per line, so that diffs are readable and branches merge."""
    blocks = [
        f'"schema_version": {baseline.schema_version}',
        f'"device_key": {json.dumps(baseline.device_key)}',
        list_block("runs", baseline.runs, lambda run: (run.time, run.run_id)),
        _workload_block(baseline),
        list_block("observations", baseline.observations, lambda row: (row.test, row.workload, row.run)),
        list_block("cells", baseline.cells, lambda cell: cell.key),
        list_block("work", baseline.work, lambda work: work.key),
        list_block("epochs", baseline.epochs, lambda row: (row.test, row.metric, row.time, row.reason)),
    ]
    return "{\n" + ",\n".join(blocks) + "\n}\n"


def list_block(name: str, rows: Iterable[_Row], order: Callable[[_Row], tuple[str, ...]]) -> str:
    """Serialize one list of a file, one row per line, sorted by ``order``."""
    lines = ",\n".join(_line(row) for row in sorted(rows, key=order))
    return f'"{name}": [\n{lines}\n]' if lines else f'"{name}": []'


def _workload_block(baseline: Baseline) -> str:
    lines = ",\n".join(f'"{name}": {_line(workload)}' for name, workload in sorted(baseline.workloads.items()))
    return f'"workloads": {{\n{lines}\n}}' if lines else '"workloads": {}'


def _line(row: BaseModel) -> str:
    return json.dumps(row.model_dump(exclude_defaults=True), allow_nan=False)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise BaselineError(f"cannot read baseline {path}: {reason}") from error


def _checked(name: str, read: Callable[[], Baseline]) -> Baseline:
    try:
        return read()
    except ValidationError as error:
        raise BaselineError(f"{name}: {first_problem(error)}. Restore it from version control") from error
    except ValueError as error:
        raise BaselineError(f"{name}: {error}. Restore it from version control") from error


def _parse(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        found = "the file ends early" if error.pos >= len(text.rstrip()) else error.msg
        raise ValueError(f"line {error.lineno}, column {error.colno}: not valid JSON ({found})") from error


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a measurement; expected a finite number")


def first_problem(error: ValidationError) -> str:
    """Format the first problem of a validation error: its path, the message and the value found."""
    problem = error.errors(include_url=False)[0]
    path = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    found = problem["input"]
    shown = "" if isinstance(found, dict | list | BaseModel) else f", found {str(found)[:80]!r}"
    return f"{path}: {message}{shown}" if path else f"{message}{shown}"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file while it is read and replaced; create its folder.

    Raises:
        BaselineError: another process holds the lock for too long, or the file cannot be written.
    """
    try:
        with FileLock(_lock_path(path), timeout=LOCK_TIMEOUT_S):
            yield
    except TimeoutError as error:
        raise BaselineError(f"{path} is locked by another process for more than {LOCK_TIMEOUT_S:.0f} s") from error
    except OSError as error:
        raise BaselineError(f"cannot write baseline {path}: {error.strerror or error}") from error


def _lock_path(path: Path) -> Path:
    """Return the path of the lock, in a folder that git ignores, so that ``git add`` takes the baselines alone."""
    folder = path.parent / ".locks"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".gitignore").write_text("*\n", encoding="utf-8")
    return folder / f"{path.name}.lock"


class Written(BaseModel):
    """Base class of files that `write_model` writes: frozen, and unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def write_model(path: Path, model: Written, *, what: str) -> None:
    """Write a model as JSON, atomically; errors call it ``what``.

    Raises:
        BaselineError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, model.model_dump_json(indent=1) + "\n")
    except OSError as error:
        raise BaselineError(f"cannot write {what} {path}: {error.strerror or error}") from error


def replace_file(path: Path, text: str) -> None:
    """Write a file atomically, so that readers see the old content or the new.

    Raises:
        OSError: it cannot be written.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes the file private; a baseline must be as readable as the project's other files.
        temporary.chmod(path.stat().st_mode & 0o777 if path.exists() else 0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _nearest_existing(folder: Path) -> Path:
    return next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
