"""One run from start to finish: collects what became of every test, keeps it at once, and writes the baseline once.

Under xdist the workers measure and judge, each a run of its own, and this runs on their controller.
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
from pytest_llmperf.verdict.anchor import pinned_baseline
from pytest_llmperf.verdict.model import Outcome
from pytest_llmperf.verdict.outcome import Entry, RunOutcome, Update
from pytest_llmperf.verdict.verdict_file import VerdictFile, verdict_file, write_verdicts

if TYPE_CHECKING:
    from pytest_llmperf.report.inputs import Evidence

LONGEST_LIST = 3
NOT_KEPT = "what was measured could not be kept"
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR)
"""Errors of a place that cannot be written to at all, unlike those of a disk that is full."""


@dataclass
class Session:
    """The collecting side: every entry, the journal, and the one write at the end."""

    options: Options
    root: Path
    outcome: RunOutcome
    journals: dict[str, Journal] = field(default_factory=dict)
    """By run: each xdist worker is one."""
    _collected: set[str] = field(default_factory=set)
    _kept: set[str] = field(default_factory=set)

    def collect(self, entry: Entry) -> bool:
        """Take in what became of a test, unless that is known: whoever repeats a test, its first outcome stands."""
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
        """Write what a test measured to the journal, once; a test that waits for confirmation is kept before."""
        if entry.test in self._kept:
            return
        self._kept.add(entry.test)
        with self.noting(NOT_KEPT, is_asked=self.options.journal is not None):
            self._append(entry)

    @contextmanager
    def noting(self, what: str, *, is_asked: bool = True) -> Iterator[None]:
        """Run a step of which a failure is told in the summary and fails the run, while the next steps are done.

        A read-only checkout does not fail a run that nobody has asked to write there.
        """
        try:
            yield
        except Exception as error:  # noqa: BLE001  # whatever it is, the rest is written
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
        """Update the baseline if that was asked for and is allowed."""
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
        """Write the files that were asked for, of a run that has finished; one that cannot be is told.

        Args:
            arguments: that pytest was given.
            exit_code: of the run.
        """
        with self.noting(NOT_KEPT):
            if self.options.report:
                from pytest_llmperf.report.html import write_report

                write_report(self.options.report, self._evidence(self._verdicts(arguments, exit_code)))
        with self.noting(NOT_KEPT):  # last, since it says whether all went well
            if self.options.verdicts:
                write_verdicts(self.options.verdicts, self._verdicts(arguments, exit_code))

    def _verdicts(self, arguments: Sequence[str], exit_code: int) -> VerdictFile:
        command = ["pytest", *without_outputs(arguments)]
        return verdict_file(self.outcome, command=command, exit_code=exit_code, folder=folder_in_repository(self.root))

    def _evidence(self, verdicts: VerdictFile) -> Evidence:
        """What the report is made from: the baseline is read again, since under xdist a worker had it."""
        from pytest_llmperf.report.inputs import Evidence

        path, reference = baseline_path(self.options.baselines, verdicts.device_key), self.options.baseline_ref
        if reference:
            baseline = pinned_baseline(self.root, reference, path, present=None)
        else:
            baseline = load_baseline(path) if path.exists() else None
        results = [result for entry in self.outcome.entries for result in entry.results]
        return Evidence(verdicts=verdicts, results=results, baseline=baseline)

    def _refusal(self, *, failed: bool, interrupted: bool) -> str:
        """Why this run must not become part of the baseline; empty if it may."""
        if interrupted:
            return f"the run was interrupted{self._where_kept()}"
        if failed:
            return f"a test failed{self._where_kept()}"
        if self.outcome.unreported:
            return f"a worker died{self._where_kept()}"
        if not any(entry.results for entry in self.outcome.entries):
            return "nothing was measured that a baseline keeps"
        if disturbed := self.outcome.disturbed:
            return f"the run was disturbed: {some([*disturbed], 3)}: {next(iter(disturbed.values()))}"
        invalid = sum(
            verdict.outcome is Outcome.INVALID for entry in self.outcome.entries for verdict in entry.verdicts
        )
        return plural(invalid, "invalid cell") if invalid else ""

    def _where_kept(self) -> str:
        paths = [str(journal.path) for journal in self.journals.values()]
        return f"; what was measured is kept in {some(paths, LONGEST_LIST)}" if paths else ""

    def _appended(self, baseline: Baseline | None) -> Baseline:
        measured = [entry for entry in self.outcome.entries if entry.results]
        runs = {entry.run.run_id: entry.run for entry in measured}
        results = [result for entry in measured for result in entry.results]
        added = baseline_of(measured[0].device_key, list(runs.values()), results)
        if baseline is None:
            return added
        return merge(baseline, only_new_cells(baseline, added) if self.options.update_new_only else added)

    def _begin_journal(self, entry: Entry) -> Journal:
        """The file that was asked for is the first run's; a worker that replaces a crashed one is another run."""
        run = entry.run
        path = (None if self.journals else self.options.journal) or _next_journal(self.root, run.run_id)
        journal = Journal(path, device_key=entry.device_key, run=run, injected=entry.injected)
        self.journals[run.run_id] = journal
        return journal


def refuse_early(options: Options, *, environ: Mapping[str, str], workers: int, devices: Sequence[str]) -> None:
    """Refuse what could only be refused after minutes of measuring otherwise.

    Raises:
        UsageError: workers outnumber devices or would write one journal, an update under CI was not forced, the folder
            of ``--llmperf-json`` cannot be made, or what ``--llmperf-report`` needs is not installed.
    """
    if options.report:
        from pytest_llmperf.report.html import require_report_extra

        require_report_extra()
    if options.json_folder:
        try:
            options.json_folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--llmperf-json: cannot make {options.json_folder}: {error.strerror}") from error
    if workers > len(devices):
        found = f"{len(devices)} devices" if len(devices) > 1 else "one device"
        raise UsageError(
            f"--llmperf: {workers} workers would measure on {found} at once ({', '.join(devices)}); expected one on "
            f"each: use -n{len(devices)}"
        )
    if workers > 1 and options.journal:
        raise UsageError(
            f"--llmperf-journal: a journal is of one run, and {workers} workers are as many: leave it out and find "
            "theirs in .llmperf/runs"
        )
    # The same test for CI that pytest uses.
    if options.updates and not options.force_update and (environ.get("CI") or environ.get("BUILD_NUMBER")):
        raise UsageError(
            "--llmperf-update under CI: a gate must not move its own baseline; allow it with --llmperf-force-update"
        )


def one_line(error: Exception) -> str:
    """An error as a line of the summary."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    first = first_line(error)
    return first if isinstance(error, LlmperfError) else f"{type(error).__name__}: {first}".removesuffix(": ")


def _write_json(folder: Path, entry: Entry) -> None:
    """One file a measured workload, named after its parameters."""
    for result in entry.results:
        text = entry.model_copy(update={"results": [result]}).model_dump_json(indent=1)
        (folder / f"{_file_name(entry.test, result)}.json").write_text(text, encoding="utf-8")


def _file_name(test: str, result: TestResult) -> str:
    """Readable parameters, and a digest of test and workload: functions of one name in two files are two files."""
    workload = result.workload
    function = short_name(test).partition("[")[0]
    lengths = f"b{workload.batch_size}-{workload.input_tokens}in-{workload.output_tokens}out"
    digest = hashlib.sha256(f"{test} {workload.hash}".encode()).hexdigest()[:12]
    return "-".join((slug(function), slug(workload.model), workload.quantization, lengths, workload.execution, digest))


def _next_journal(root: Path, run_id: str) -> Path:
    """Where this run's journal goes; the oldest makes room."""
    folder = scratch_folder(root, "runs")
    make_room(folder)
    return folder / f"{run_id}.jsonl"
