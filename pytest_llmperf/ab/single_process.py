"""Measure one side in one fresh process, without the other side: enough for exact figures."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from pytest_llmperf.ab.blocks import refuse_abnormal_end, refuse_foreign
from pytest_llmperf.ab.side import Side
from pytest_llmperf.errors import UsageError
from pytest_llmperf.storage.process_result import ProcessResult
from pytest_llmperf.storage.provenance import Imported, report_path
from pytest_llmperf.system.pytest_process import run_perf_tests
from pytest_llmperf.verdict.model import CellKey, number

_JOURNAL = "measured.jsonl"


def measure_once(side: Side, folder: Path, arguments: Sequence[str]) -> ProcessResult:
    """Run a side's perf tests in one process, or return the result that an earlier call kept in the folder.

    Args:
        side: to run.
        folder: of the result; it exists only once the result is complete.
        arguments: pytest's.

    Raises:
        UsageError: the process was ended, or did not run its own revision.
    """
    if not folder.exists():
        partial = folder.with_name(f"{folder.name}-partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _run(side, partial / _JOURNAL, arguments)
        partial.rename(folder)
    return ProcessResult.read(folder / _JOURNAL)


def figure_of(measured: ProcessResult, key: CellKey) -> float:
    """Return the figure of a cell.

    Raises:
        UsageError: the process did not measure it; the message says why.
    """
    value = measured.values.get(key)
    if value is None or isinstance(value, str):
        raise UsageError(_why_not(measured, key))
    return number(value)


def _run(side: Side, journal: Path, arguments: Sequence[str]) -> None:
    ended = run_perf_tests(
        [*arguments, "--llmperf-measure-only", f"--llmperf-journal={journal}"],
        python=side.python,
        folder=side.folder,
        environment=side.environment,
        log=journal.with_suffix(".log"),
    )
    refuse_abnormal_end(side, ended)
    if journal.exists():
        refuse_foreign(side, Imported.read(report_path(journal)))


def _why_not(measured: ProcessResult, key: CellKey) -> str:
    test, workload, metric = key
    note = measured.notes.get(test)
    if note and note.error:
        return f"{test}: {note.error}"
    if key in measured.invalid:
        return f"{test}: {measured.invalid[key]}"
    if test not in {name for name, _, _ in measured.values}:
        return f"it does not measure {test}"
    if workload not in {other for name, other, _ in measured.values if name == test}:
        return f"{test} measures another workload"
    return f"{test}: it has no {metric}"
