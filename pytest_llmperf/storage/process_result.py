"""What one fresh process measured, from the journal that it was told to write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from pytest_llmperf.storage.baseline_file import load_baseline
from pytest_llmperf.storage.journal import Note, journal_notes, journal_profiles
from pytest_llmperf.storage.schema import Baseline, PhaseProfile, Run


@dataclass(frozen=True)
class ProcessResult:
    """Figures and notes; ``baseline`` is none where the process had nothing to write."""

    baseline: Baseline | None
    notes: Mapping[str, Note]
    profiles: Mapping[tuple[str, str], Mapping[str, PhaseProfile]] = field(default_factory=dict)
    """By test and workload hash, then by phase, of a process that was to profile."""

    @cached_property
    def values(self) -> dict[tuple[str, str, str], int | float | str | None]:
        """Figures by test, workload hash and metric; what is invalid was not measured."""
        cells = self.baseline.cells if self.baseline else []
        return {cell.key[:3]: None if cell.key[:3] in self.invalid else cell.value for cell in cells}

    @cached_property
    def invalid(self) -> dict[tuple[str, str, str], str]:
        """Why figures do not count, by the same key."""
        return {key[:3]: why for key, why in self.baseline.invalid_cells().items()} if self.baseline else {}

    @property
    def run(self) -> Run | None:
        """The record of the process."""
        return self.baseline.runs[0] if self.baseline else None

    @classmethod
    def read(cls, journal: Path) -> ProcessResult:
        """From a journal, which may hold injected numbers; a process that had nothing to write left none.

        Raises:
            BaselineError: the journal cannot be read or trusted.
        """
        if not journal.exists():
            return cls(None, {})
        return cls(load_baseline(journal, injected=True), journal_notes(journal), journal_profiles(journal))
