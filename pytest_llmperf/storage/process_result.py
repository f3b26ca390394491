"""Read the result of a child process from its journal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from pytest_llmperf.metrics import METRICS, Limit
from pytest_llmperf.storage.baseline_file import load_baseline
from pytest_llmperf.storage.journal import Note, journal_notes, journal_profiles
from pytest_llmperf.storage.schema import Baseline, PhaseProfile, Run


@dataclass(frozen=True)
class ProcessResult:
    """Figures and notes of a child process; ``baseline`` is ``None`` if it wrote no journal."""

    baseline: Baseline | None
    notes: Mapping[str, Note]
    profiles: Mapping[tuple[str, str], Mapping[str, PhaseProfile]] = field(default_factory=dict)
    """Profiles by test and workload hash, then by phase, if the process ran the profiler."""

    @cached_property
    def values(self) -> dict[tuple[str, str, str], int | float | str | None]:
        """Figures by test, workload hash and metric; ``None`` if invalid or not measured."""
        cells = self.baseline.cells if self.baseline else []
        return {cell.key[:3]: None if cell.key[:3] in self.invalid else cell.value for cell in cells}

    @cached_property
    def invalid(self) -> dict[tuple[str, str, str], str]:
        """Reasons of invalid figures, by the same key."""
        return {key[:3]: why for key, why in self.baseline.invalid_cells().items()} if self.baseline else {}

    def limit(self, key: tuple[str, str, str]) -> Limit:
        """The limit of a figure: as its test sets it, else the metric's own."""
        note = self.notes.get(key[0])
        return note.limits[key[2]] if note and key[2] in note.limits else Limit.of(METRICS[key[2]])

    @property
    def run(self) -> Run | None:
        """Run record of the process."""
        return self.baseline.runs[0] if self.baseline else None

    @classmethod
    def read(cls, journal: Path) -> ProcessResult:
        """Read a journal, which may hold injected numbers; without a file, return an empty result.

        Raises:
            BaselineError: the journal cannot be read or is invalid.
        """
        if not journal.exists():
            return cls(None, {})
        return cls(load_baseline(journal, injected=True), journal_notes(journal), journal_profiles(journal))
