"""Operator profiles, made in fresh subprocesses so that the profiler affects no process whose times count.

Profiles of regressed tests show where the time went. Profiles of recorded tests are stored beside the baseline, for
later comparisons.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import pytest

from pytest_llmperf.errors import LlmperfError
from pytest_llmperf.report.terminal import write_now
from pytest_llmperf.runner.context import Workplace
from pytest_llmperf.runner.session import Session
from pytest_llmperf.storage.comparability import blocking, compare_environments
from pytest_llmperf.storage.process_result import ProcessResult
from pytest_llmperf.storage.profiles import (
    Key,
    comparable,
    keep_profiles,
    load_profiles,
    parse_profiles,
    profiles_path,
    run_of,
)
from pytest_llmperf.storage.schema import ProfileFile, Run
from pytest_llmperf.system.git import file_at, is_file_at
from pytest_llmperf.system.paths import run_folder
from pytest_llmperf.system.pytest_process import ProcessExit, run_replica
from pytest_llmperf.text import plural, some
from pytest_llmperf.verdict.outcome import Entry
from pytest_llmperf.verdict.time_change import Profiles, slower, time_changes

NO_PROFILE = "no profile is stored; recording a run stores profiles of llmperf.generate"
LONGEST_LIST = 3


def explained(entries: Sequence[Entry], config: pytest.Config, workplace: Workplace) -> list[Entry]:
    """Return the entries; those with a timed regression get the times of operators on both sides.

    Args:
        entries: with their final verdicts.
        config: of the run; the subprocess gets its arguments.
        workplace: judged the entries.
    """
    regressed = [entry for entry in entries if slower(entry.verdicts)]
    if not regressed or not workplace.options.explain:
        return list(entries)
    try:
        base = _stored(config, workplace)
        known = {test for test, _ in base.found}
        tests = [entry.test for entry in regressed if entry.test in known]
        now, traces = profiled(config, tests, workplace.run)
    except (OSError, LlmperfError) as error:
        base, now, traces = Profiles("baseline", why_not=str(error)), Profiles("now"), ""
    return [_explained(entry, base, now, traces) for entry in entries]


def _explained(entry: Entry, base: Profiles, now: Profiles, traces: str) -> Entry:
    return entry.model_copy(update={"time_changes": time_changes(entry.verdicts, base, now, traces=traces)})


def store_profiles(config: pytest.Config, session: Session) -> str:
    """Store profiles of the recorded tests beside the baseline; return a summary line, empty if nothing was to do.

    Workloads that already have a profile of this commit are left out.

    Raises:
        OSError: the profiles cannot be written; ``LlmperfError``: the existing file cannot be trusted.
    """
    update, entries = session.outcome.update, session.outcome.entries
    if not session.options.explain or update is None or update.baseline is None:
        return ""
    run, path = entries[0].run, profiles_path(session.options.baselines, entries[0].device_key)
    of = {(cell.test, cell.workload) for cell in update.baseline.cells}
    wanted = list(_unprofiled(entries, load_profiles(path), run))
    if not wanted:
        return ""
    found, _ = profiled(config, wanted, run)
    if not found.found:
        return f"operator profiles NOT stored: {found.why_not}"
    keep_profiles(path, entries[0].device_key, run, found.found, of=of)
    return f"operator profiles of {plural(len(found.found), 'workload')} kept: {path}"


def profiled(config: pytest.Config, tests: Sequence[str], run: Run) -> tuple[Profiles, str]:
    """Profile some of a run's tests; return the profiles and the traces' folder, both empty without tests.

    The folder is relative to the project.

    Raises:
        OSError: the scratch folder cannot be written.
        BaselineError: the subprocess's journal cannot be read.
    """
    if not tests:
        return Profiles("now"), ""
    write_now(config, f"llmperf: profiling {some(tests, LONGEST_LIST)}")
    folder = run_folder(config.rootpath, "traces", run.run_id)
    journal = folder / "profile.jsonl"
    ended = run_replica(config, tests, journal, session_id=run.session_id, extra=[f"--llmperf-profile={folder}"])
    return profiles_of("now", ProcessResult.read(journal), ended), folder.relative_to(config.rootpath).as_posix()


def profiles_of(name: str, measured: ProcessResult, ended: ProcessExit) -> Profiles:
    """Return the profiles of a subprocess, and why others are missing.

    Args:
        name: of the side.
        measured: its journal.
        ended: how it ended.
    """
    died = f"exit code {ended.exit_code}, {ended.last_line}" if ended.exit_code else "the test makes no single request"
    errors = [f"{note.test}: {note.error}" for note in measured.notes.values() if note.error]
    return Profiles(name, measured.profiles, f"not profiled: {next(iter(errors), died)} (see {ended.log})")


def _stored(config: pytest.Config, workplace: Workplace) -> Profiles:
    """Return the profiles stored beside the baseline that the run was compared with."""
    path, reference = profiles_path(workplace.options.baselines, workplace.device_key), workplace.options.baseline_ref
    if reference is None:
        file = load_profiles(path)
    elif is_file_at(config.rootpath, reference, path):
        file = parse_profiles(file_at(config.rootpath, reference, path), name=f"{reference}:{path.name}")
    else:
        file = None
    if file is None:
        return Profiles("baseline", why_not=NO_PROFILE)
    found = comparable(file, workplace.run.environment)
    why = NO_PROFILE if found else "its profiles are from another environment"
    return Profiles(f"baseline{_commits(file, found)}", found, why)


def _commits(file: ProfileFile, found: Iterable[Key]) -> str:
    commits = {run.commit[:12] for key in found if (run := run_of(file, key)) and run.commit}
    return f" of {', '.join(sorted(commits))}" if commits else ""


def _unprofiled(entries: Sequence[Entry], file: ProfileFile | None, run: Run) -> Iterator[str]:
    """Yield tests whose single requests, which have wall times, have no profile of this commit yet."""
    for entry in entries:
        requests = [one for one in entry.results if "e2e_wall_ms" in one.samples]
        keys = [(entry.test, result.workload.hash) for result in requests]
        if not all(file and _is_of(run_of(file, key), run) for key in keys):
            yield entry.test


def _is_of(then: Run | None, now: Run) -> bool:
    """Whether a profile is of the code that was recorded now, on a comparable machine.

    A tree that differs from its commit, or has none, is assumed not to change during one session.
    """
    if then is None or blocking(compare_environments(then.environment, now.environment)):
        return False
    if (then.commit, then.dirty) != (now.commit, now.dirty):
        return False
    return then.session_id == now.session_id or (now.commit is not None and not now.dirty)
