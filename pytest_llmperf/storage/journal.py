"""Journal of a run: JSON lines appended as each test ends, so that a crash loses no finished test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from pytest_llmperf.metrics import Limit
from pytest_llmperf.storage.schema import Baseline, PhaseProfile, Run, StoredWork, TestResult

_NOTE = '{"test":'


class Note(BaseModel):
    """Further facts about a test: the error that ended its measurement, and its limits by metric key."""

    model_config = ConfigDict(frozen=True)

    test: str
    error: str = ""
    limits: dict[str, Limit] = {}


class Header(BaseModel):
    """First line of a journal."""

    model_config = ConfigDict(frozen=True)

    device_key: str
    run: Run
    injected: list[str] = []
    """Slowdowns that were injected into its numbers."""


class Journal:
    """Append-only ``.jsonl`` file of one run."""

    def __init__(self, path: Path, *, device_key: str, run: Run, injected: Sequence[str] = ()) -> None:
        self.path = path
        header = Header(device_key=device_key, run=run, injected=[*injected])
        self._header = header.model_dump_json(exclude_defaults=True)

    def append(self, result: TestResult) -> None:
        """Append the result of one test; the data are handed to the operating system on return."""
        self._write(result.model_dump_json(exclude_defaults=True))

    def append_note(self, note: Note) -> None:
        """Append a note about a test."""
        self._write(note.model_dump_json(exclude_defaults=True))

    def _write(self, line: str) -> None:
        if not self.path.exists():
            self._create()
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def _create(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(self._header + "\n", encoding="utf-8")


def read_journal(text: str, *, injected: bool = False) -> Baseline:
    """Parse a journal's text into a baseline of one run, ignoring a last line truncated by a crash.

    Args:
        text: content of the journal.
        injected: whether numbers changed by ``--llmperf-inject`` are accepted.

    Raises:
        ValueError: there is no complete header, a line before the last is broken, or the numbers are injected.
    """
    header, results = read_results(text)
    if header.injected and not injected:
        raise ValueError(
            "line 1: the run has injected regressions (--llmperf-inject), which a baseline must not contain"
        )
    return baseline_of(header.device_key, [header.run], results)


def read_results(text: str) -> tuple[Header, list[TestResult]]:
    """Return a journal's header and the tests' results, including per-request figures.

    Raises:
        ValueError: there is no complete header, or a line before the last is broken.
    """
    lines = text.splitlines()
    try:
        header = Header.model_validate_json(lines[0])
    except (IndexError, ValidationError) as error:
        raise ValueError("line 1: not the header of a run's journal") from error
    return header, _results(lines[1:])


def journal_notes(path: Path) -> dict[str, Note]:
    """Return a journal's notes by test, ignoring a last line truncated by a crash."""
    lines = path.read_text(encoding="utf-8").splitlines()
    notes = [Note.model_validate_json(line) for line in lines if line.startswith(_NOTE) and line.endswith("}")]
    return {note.test: note for note in notes}


def journal_profiles(path: Path) -> dict[tuple[str, str], dict[str, PhaseProfile]]:
    """Return the profiles of an already validated journal, by test and workload hash."""
    lines = path.read_text(encoding="utf-8").splitlines()[1:]
    results = _results([line for line in lines if '"profile":' in line])
    return {(one.observation.test, one.workload.hash): one.profile for one in results if one.profile}


def baseline_of(device_key: str, runs: list[Run], results: list[TestResult]) -> Baseline:
    """Return a baseline whose window is the given runs."""
    return Baseline(
        device_key=device_key,
        runs=runs,
        workloads={result.workload.hash: result.workload for result in results},
        observations=[result.observation for result in results],
        cells=[cell for result in results for cell in result.cells],
        work=[_stored_work(result) for result in results if result.work],
    )


def _stored_work(result: TestResult) -> StoredWork:
    seen = result.observation
    return StoredWork(test=seen.test, workload=seen.workload, run=seen.run, phases=result.work)


def _results(lines: list[str]) -> list[TestResult]:
    results = []
    for number, line in enumerate(lines, start=2):
        if line.startswith(_NOTE):
            continue
        try:
            results.append(TestResult.model_validate_json(line))
        except ValidationError as error:
            if number == len(lines) + 1:
                break
            raise ValueError(f"line {number}: not a test's result") from error
    return results
