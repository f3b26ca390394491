"""Result lines: each is one check, and on the disk before the next one begins."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

NEEDS_CUDA = "needs CUDA"

_FILE, _STEP = "GPU_DAY_RESULTS", "GPU_DAY_STEP"
"""Variables that tell a step's processes where their lines go, and whose they are."""
_LONGEST = 160
"""Characters of a cell in the table; the line has them all."""


class State(StrEnum):
    """What a check came to."""

    OK = "ok"
    FAILED = "failed"
    SKIPPED = "skipped"
    MEASURED = "measured"
    """There is a figure, and nothing that it must be."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One check. Lines of one ``run`` are of one call of the script."""

    run: str
    stage: str
    step: str
    name: str
    expected: str
    found: str
    state: State
    seconds: float


class Results:
    """Writes the lines of one step. Any number of processes may append to one file.

    Args:
        path: of the file, one line of JSON a check.
        run: the call of the script.
        stage: of the step.
        step: that makes the checks.
    """

    def __init__(self, path: Path, *, run: str, stage: str, step: str) -> None:
        self._path = path
        self._run, self._stage, self._step = run, stage, step
        self._since = time.monotonic()

    @classmethod
    def of_this_step(cls) -> Results:
        """Those of the step that this process belongs to."""
        run, stage, step = os.environ[_STEP].split("/")
        return cls(Path(os.environ[_FILE]), run=run, stage=stage, step=step)

    @property
    def variables(self) -> dict[str, str]:
        """Environment of a process that shall write lines of this step."""
        return {_FILE: str(self._path), _STEP: f"{self._run}/{self._stage}/{self._step}"}

    def compare(self, name: str, *, expected: object, found: object, holds: bool | None = None) -> None:
        """Write whether what was found is what was expected: equal to it, unless ``holds`` says more."""
        right = found == expected if holds is None else holds
        self._write(name, expected, found, State.OK if right else State.FAILED)

    def measured(self, name: str, found: object, *, why: str = "") -> None:
        """Write a figure that is compared with nothing; ``why`` says why not."""
        self._write(name, why, found, State.MEASURED)

    def skip(self, name: str, reason: str) -> None:
        """Write that nothing was checked."""
        self._write(name, "", reason, State.SKIPPED)

    def fail(self, name: str, *, expected: str, found: str) -> None:
        """Write a failure."""
        self._write(name, expected, found, State.FAILED)

    def written(self) -> list[Line]:
        """The lines of this step so far."""
        of_this = (self._run, self._stage, self._step)
        return [line for line in read(self._path) if (line.run, line.stage, line.step) == of_this]

    def _write(self, name: str, expected: object, found: object, state: State) -> None:
        now = time.monotonic()
        line = Line(run=self._run, stage=self._stage, step=self._step, name=name, expected=str(expected),
                    found=str(found), state=state, seconds=round(now - self._since, 2))  # fmt: skip
        self._since = now
        append(self._path, json.dumps(asdict(line)) + "\n")


def append(path: Path, text: str) -> None:
    """Append to a file, and return when the disk has it: what kills this process or machine next cannot take it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, text.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(path: Path) -> list[Line]:
    """All lines of a file; what was cut off in the middle is left out."""
    found = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            fields = json.loads(text)
            found.append(Line(**{**fields, "state": State(fields["state"])}))
        except (ValueError, TypeError, KeyError):
            continue
    return found


def latest(lines: Sequence[Line]) -> list[Line]:
    """Of each stage, the lines of the last run that had it: a stage that was run again replaces its lines."""
    last = {line.stage: line.run for line in lines}
    return [line for line in lines if line.run == last[line.stage]]


def table(lines: Iterable[Line]) -> str:
    """The lines as Markdown."""
    rows = ["| stage | step | check | expected | found | | s |", "|---|---|---|---|---|---|---:|"]
    return "\n".join([*rows, *map(_row, lines)])


def counts(lines: Sequence[Line]) -> str:
    """How many lines there are of each state."""
    each = ", ".join(f"{sum(line.state is state for line in lines)} {state}" for state in State)
    return f"{len(lines)} lines: {each}."


def _row(line: Line) -> str:
    cells = [line.stage, line.step, line.name, line.expected, line.found, line.state, f"{line.seconds:.1f}"]
    return f"| {' | '.join(_cell(cell) for cell in cells)} |"


def _cell(text: str) -> str:
    flat = " ".join(text.split()).replace("|", "\\|")
    return flat if len(flat) <= _LONGEST else f"{flat[: _LONGEST - 3]}..."
