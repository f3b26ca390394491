"""One run: collects the results of every test, journals them at once, and writes the baseline at the end.

Under xdist this runs on the controller. Each worker measures and judges, as a run of its own.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_llmperf.errors import LlmperfError, UsageError
from pytest_llmperf.runner.config import Options
from pytest_llmperf.storage.baseline_file import baseline_path, load_baseline, update_baseline
from pytest_llmperf.storage.journal import Journal, Note, baseline_of
from pytest_llmperf.storage.merge import merge, only_new_cells
from pytest_llmperf.storage.schema import Baseline, TestResult
from pytest_llmperf.system.git import folder_in_repository
from pytest_llmperf.system.paths import make_room, scratch_folder
from pytest_llmperf.system.pytest_process import without_outputs
from pytest_llmperf.text import first_line, plural, short_name, slug, some
from pytest_llmperf.verdict.anchor import pinned_baselines
from pytest_llmperf.verdict.model import Outcome
from pytest_llmperf.verdict.outcome import Entry, RunOutcome, Update
from pytest_llmperf.verdict.verdict_file import VerdictFile, verdict_file, write_verdicts

if TYPE_CHECKING:
    from pytest_llmperf.report.inputs import Evidence

LONGEST_LIST = 3
NOT_KEPT = "results could not be written"
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR)
"""Errors of a place that is never writable, unlike a full disk."""


@dataclass
class Session:
    """Collects every entry, keeps the journals, and updates the baseline once, at the end."""

    options: Options
    root: Path
    outcome: RunOutcome
    journals: dict[str, Journal] = field(default_factory=dict)
    """By run id; each xdist worker is a run."""
    _collected: set[str] = field(default_factory=set)
    _kept: set[str] = field(default_factory=set)

    def collect(self, entry: Entry) -> bool:
        """Add a test's entry, and return whether it is new: the first outcome of a repeated test stands."""
        if entry.test in self._collected:
            return False
        self._collected.add(entry.test)
        self.outcome.entries.append(entry)
        self.keep(entry)
        if self.options.json_folder:
            with self.noting(NOT_KEPT):
                _write_json(self.options.json_folder, entry)
        return True

    def keep(self, entry: Entry) -> None:
        """Append a test's results to the journal, once; a test that awaits confirmation is journaled before it."""
        if entry.test in self._kept:
            return
        self._kept.add(entry.test)
        with self.noting(NOT_KEPT, is_asked=self.options.journal is not None):
            self._append(entry)

    @contextmanager
    def noting(self, what: str, *, is_asked: bool = True) -> Iterator[None]:
        """Run a step; if it fails, note that in the summary and fail the run, but let the next steps run.

        A read-only checkout does not fail a run if the user did not ask to write there.
        """
        try:
            yield
        except Exception as error:  # noqa: BLE001  # any error: the next steps still run
            is_refused = isinstance(error, OSError) and error.errno in _READ_ONLY
            told = self.outcome.notes if is_refused and not is_asked else self.outcome.troubles
            told.setdefault(f"{what}: {one_line(error)}")

    def _append(self, entry: Entry) -> None:
        if entry.injected and not self.options.journal:
            return
        if entry.results or (entry.error and self.options.journal):
            journal = self.journals.get(entry.run.run_id) or self._begin_journal(entry)
            for result in entry.results:
                journal.append(result)
            if entry.error or entry.limits:
                journal.append_note(Note(test=entry.test, error=entry.error, limits=entry.limits))

    def finish(self, *, failed: bool, interrupted: bool) -> None:
        """Update the baseline if requested and allowed."""
        if not self.options.updates:
            return
        reason = self._refusal(failed=failed, interrupted=interrupted)
        if reason:
            self.outcome.update = Update(path=self.options.baselines, refusal=reason)
            return
        path = baseline_path(self.options.baselines, self.outcome.entries[0].device_key)
        try:
            self.outcome.update = Update(path=path, baseline=update_baseline(path, self._appended))
        except (OSError, LlmperfError) as error:
            self.outcome.update = Update(path=path, refusal=one_line(error), failed=True)

    def write_outputs(self, *, arguments: Sequence[str], exit_code: int) -> None:
        """Write the requested files of a finished run; errors are noted in the summary.

        Args:
            arguments: pytest's arguments.
            exit_code: the run's exit code.
        """
        with self.noting(NOT_KEPT):
            if self.options.report:
                from pytest_llmperf.report.html import write_report

                write_report(self.options.report, self._evidence(self._verdicts(arguments, exit_code)))
        with self.noting(NOT_KEPT):  # last, because it records whether the run failed
            if self.options.verdicts:
                write_verdicts(self.options.verdicts, self._verdicts(arguments, exit_code))

    def _verdicts(self, arguments: Sequence[str], exit_code: int) -> VerdictFile:
        command = ["pytest", *without_outputs(arguments)]
        return verdict_file(self.outcome, command=command, exit_code=exit_code, folder=folder_in_repository(self.root))

    def _evidence(self, verdicts: VerdictFile) -> Evidence:
        """Return the report's inputs; read the baseline again, because under xdist only a worker has read it."""
        from pytest_llmperf.report.inputs import Evidence

        path, reference = baseline_path(self.options.baselines, verdicts.device_key), self.options.baseline_ref
        if reference:
            found = pinned_baselines(self.root, reference, self.options.baselines, present={})
            baseline = found.get(verdicts.device_key)
        else:
            baseline = load_baseline(path) if path.exists() else None
        results = [result for entry in self.outcome.entries for result in entry.results]
        return Evidence(verdicts=verdicts, results=results, baseline=baseline)

    def _refusal(self, *, failed: bool, interrupted: bool) -> str:
        """Return why this run must not enter the baseline; empty if it may."""
        if interrupted:
            return f"the run was interrupted{self._where_kept()}"
        if failed:
            return f"a test failed{self._where_kept()}"
        if self.outcome.unreported:
            return f"a worker died{self._where_kept()}"
        if not any(entry.results for entry in self.outcome.entries):
            return "the run measured nothing that a baseline stores"
        if disturbed := self.outcome.disturbed:
            return f"the run was disturbed: {some([*disturbed], 3)}: {next(iter(disturbed.values()))}"
        invalid = sum(
            verdict.outcome is Outcome.INVALID for entry in self.outcome.entries for verdict in entry.verdicts
        )
        return plural(invalid, "invalid cell") if invalid else ""

    def _where_kept(self) -> str:
        paths = [str(journal.path) for journal in self.journals.values()]
        return f"; the results are in {some(paths, LONGEST_LIST)}" if paths else ""

    def _appended(self, baseline: Baseline | None) -> Baseline:
        measured = [entry for entry in self.outcome.entries if entry.results]
        runs = {entry.run.run_id: entry.run for entry in measured}
        results = [result for entry in measured for result in entry.results]
        added = baseline_of(measured[0].device_key, list(runs.values()), results)
        if baseline is None:
            return added
        return merge(baseline, only_new_cells(baseline, added) if self.options.update == "new" else added)

    def _begin_journal(self, entry: Entry) -> Journal:
        """Open a journal. The first run gets the requested file; a worker that replaces a crashed one is a new run."""
        run = entry.run
        path = (None if self.journals else self.options.journal) or _next_journal(self.root, run.run_id)
        journal = Journal(path, device_key=entry.device_key, run=run, injected=entry.injected)
        self.journals[run.run_id] = journal
        return journal


def refuse_early(options: Options, *, environ: Mapping[str, str], workers: int, devices: Sequence[str]) -> None:
    """Reject at once a run that would otherwise fail after minutes of measuring.

    Raises:
        UsageError: there are more workers than devices, several workers would write one journal, an update under CI
            was not forced, the folder of ``--llmperf-json`` cannot be created, or the dependencies of
            ``--llmperf-report`` are not installed.
    """
    if options.report:
        from pytest_llmperf.report.html import require_report_extra

        require_report_extra()
    if options.json_folder:
        try:
            options.json_folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--llmperf-json: cannot create {options.json_folder}: {error.strerror}") from error
    if workers > len(devices):
        found = f"{len(devices)} devices" if len(devices) > 1 else "one device"
        raise UsageError(
            f"--llmperf: {workers} workers for {found} ({', '.join(devices)}); expected one worker per device: use "
            f"-n{len(devices)}"
        )
    if workers > 1 and options.journal:
        raise UsageError(
            f"--llmperf-journal: one file for {workers} workers; expected one worker, because a journal holds one run: "
            "leave it out; the journals are in .llmperf/runs"
        )
    # The same test for CI that pytest uses.
    if options.updates and not options.force_update and (environ.get("CI") or environ.get("BUILD_NUMBER")):
        raise UsageError(
            "--llmperf-update under CI: a CI job must not change its own baseline; allow it with --llmperf-force-update"
        )


def one_line(error: Exception) -> str:
    """Format an error as one line of the summary."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    first = first_line(error)
    return first if isinstance(error, LlmperfError) else f"{type(error).__name__}: {first}".removesuffix(": ")


def _write_json(folder: Path, entry: Entry) -> None:
    """Write one file per measured workload, named after its parameters."""
    for result in entry.results:
        text = entry.model_copy(update={"results": [result]}).model_dump_json(indent=1)
        (folder / f"{_file_name(entry.test, result)}.json").write_text(text, encoding="utf-8")


def _file_name(test: str, result: TestResult) -> str:
    """Return a name of readable parameters and a digest of test and workload.

    The digest separates functions that have one name in two files.
    """
    workload = result.workload
    function = short_name(test).partition("[")[0]
    lengths = f"b{workload.batch_size}-{workload.input_tokens}in-{workload.output_tokens}out"
    digest = hashlib.sha256(f"{test} {workload.hash}".encode()).hexdigest()[:12]
    return "-".join((slug(function), slug(workload.model), workload.quantization, lengths, workload.execution, digest))


def _next_journal(root: Path, run_id: str) -> Path:
    """Return the path of this run's journal; the oldest files are deleted to make room."""
    folder = scratch_folder(root, "runs")
    make_room(folder)
    return folder / f"{run_id}.jsonl"
