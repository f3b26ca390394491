"""Collect the inputs of a report: a run's verdicts, its journal and the baseline's history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pytest_llmperf.errors import BaselineError
from pytest_llmperf.storage.baseline_file import baseline_path, load_baseline
from pytest_llmperf.storage.journal import read_results
from pytest_llmperf.storage.merge import with_cells
from pytest_llmperf.storage.schema import Baseline, TestResult
from pytest_llmperf.verdict.comparison import Comparison
from pytest_llmperf.verdict.level_history import Series, series_of
from pytest_llmperf.verdict.model import CellKey
from pytest_llmperf.verdict.verdict_file import VerdictFile


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Inputs of a report. ``results`` add per-request figures and ``baseline`` adds the history."""

    verdicts: VerdictFile
    results: Sequence[TestResult] = ()
    baseline: Baseline | None = None

    @cached_property
    def result_of(self) -> Mapping[tuple[str, str], TestResult]:
        """Results by test and workload hash."""
        return {(result.observation.test, result.workload.hash): result for result in self.results}

    @cached_property
    def series_of(self) -> Mapping[CellKey, Series]:
        """History of every cell that has one, ignoring epochs."""
        found = series_of(self._past, every_metric=True) if self._past else []
        return {series.cell.key: series for series in found}

    @cached_property
    def window_of(self) -> Mapping[CellKey, Sequence[float]]:
        """Figures of the baseline's comparable runs."""
        run = self.verdicts.run
        cells = Comparison(self._past, run.environment).stored_cells if run else {}
        return {key: [v.value for v in cell.window if not isinstance(v.value, str)] for key, cell in cells.items()}

    @cached_property
    def _past(self) -> Baseline | None:
        """The baseline without this run, which an update may have appended."""
        if self.baseline is None:
            return None
        own = {self.verdicts.run.run_id} if self.verdicts.run else set()
        own |= {result.observation.run for result in self.results}  # each xdist worker has its own run
        return with_cells(self.baseline, [cell for cell in self.baseline.cells if cell.run not in own])


def gather(verdicts: VerdictFile, *, journal: Path | None, baselines: Path | None, here: Path) -> Evidence:
    """Load a run's evidence from files.

    Args:
        verdicts: verdicts of the run.
        journal: journal of the run; by default the one kept under ``here``, if any.
        baselines: folder; by default ``baselines`` under ``here``, if it holds the device's file.
        here: folder of the project.

    Raises:
        BaselineError: a given file does not exist, belongs to another run or is invalid.
    """
    path = journal or _kept_journal(verdicts, here)
    results = _results(path, verdicts) if path else []
    folder = baselines or here / "baselines"
    return Evidence(verdicts=verdicts, results=results, baseline=_baseline(folder, verdicts, named=bool(baselines)))


def _kept_journal(verdicts: VerdictFile, here: Path) -> Path | None:
    kept = {path.stem: path for path in (here / ".llmperf" / "runs").glob("*.jsonl")}
    return kept.get(verdicts.run.run_id) if verdicts.run else None


def _results(path: Path, verdicts: VerdictFile) -> list[TestResult]:
    try:
        header, results = read_results(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise BaselineError(f"cannot read journal {path}: {reason}") from error
    if verdicts.run is None or header.run.run_id != verdicts.run.run_id:
        expected = verdicts.run.run_id if verdicts.run else "none"
        raise BaselineError(f"{path}: it belongs to run {header.run.run_id!r}; the verdicts belong to run {expected!r}")
    return results


def _baseline(folder: Path, verdicts: VerdictFile, *, named: bool) -> Baseline | None:
    # The key comes from the verdict file, so it is compared with existing files and never put into a path.
    known = {path.stem for path in folder.glob("*.json")}
    if verdicts.device_key in known:
        return load_baseline(baseline_path(folder, verdicts.device_key))
    if named:
        raise BaselineError(f"no baseline of {verdicts.device_key!r} under {folder}: found {sorted(known) or 'none'}")
    return None
