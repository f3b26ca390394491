"""Run perf tests in a fresh subprocess: the unit of replication for recording, confirming and comparing."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil
import pytest

TIMED_OUT = 124
"""Exit code of a process that a time limit killed, the same as timeout(1)."""
POLL_INTERVAL_S = 0.2
"""Seconds between two checks of a watched process: rare enough not to disturb what it measures."""
SUMMARY_S = 1.0
"""Seconds that a process gets for its summary when the user interrupts both."""

_WRITING_FLAGS = (
    *("--pdb", "--trace", "--no-cov", "--cov-append", "--benchmark-autosave", "--json-report"),
    *("--llmperf-force-update", "--llmperf-isolate"),
)
_WRITING_OPTIONS = (
    *("--junitxml", "--junit-xml", "--report-log", "--log-file", "--html", "--json-report-file", "--pastebin"),
    *("--benchmark-json", "--benchmark-save", "--benchmark-storage", "--cov-report", "--cov-config"),
    *("-n", "--numprocesses", "--maxprocesses", "--dist", "--tx", "--basetemp"),
    *("--llmperf-json", "--llmperf-verdicts", "--llmperf-report", "--llmperf-confirm", "--llmperf-profile"),
    *("--llmperf-journal", "--llmperf-tell"),
)
_WRITING_WITH_OR_WITHOUT_A_NAME = (
    *("--cov", "--debug", "--benchmark-histogram", "--benchmark-cprofile-dump", "--llmperf-update"),
)


@dataclass(frozen=True)
class ProcessExit:
    """How a subprocess ended: pytest's exit code, its wall time, and the log of its output."""

    exit_code: int
    seconds: float
    log: Path | None

    @property
    def last_line(self) -> str:
        """The last informative line that the process printed."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines() if self.log else []
        telling = [line.strip() for line in lines if line.startswith(("E  ", "ERROR", "FAILED", "error:"))]
        return next(reversed(telling or [line for line in lines if line.strip()]), "it printed nothing")


def run_perf_tests(  # noqa: PLR0913  # one keyword for each thing that a process may inherit
    arguments: Sequence[str],
    *,
    python: str | None = None,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    log: Path | None = None,
    timeout_s: float | None = None,
    watch: Callable[[int], bool] | None = None,
    cores: Collection[int] | None = None,
) -> ProcessExit:
    """Run ``pytest --llmperf`` with these arguments in a subprocess.

    Args:
        arguments: pytest's arguments.
        python: the interpreter of an environment that has this package (default: ours).
        folder: working directory (default: ours).
        environment: of the process (default: ours).
        log: file for its output (default: where ours goes).
        timeout_s: seconds after which it is killed; it then ends with `TIMED_OUT`.
        watch: called a few times a second with the process's id; returns whether to kill it.
        cores: that the process and its descendants run on (default: ours).
    """
    command = [python or sys.executable, "-m", "pytest", "--llmperf", *arguments]
    start = time.monotonic()
    with (log or Path(os.devnull)).open("ab") as file:
        output: IO[bytes] | None = file if log else None
        stdin = subprocess.DEVNULL if log else None
        with _on_cores(cores):
            started = subprocess.Popen(command, cwd=folder, env=environment, stdin=stdin, stdout=output, stderr=output)
        with started as process:
            try:
                code = _wait(process, None if timeout_s is None else start + timeout_s, watch)
            except BaseException:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(SUMMARY_S)
                _kill(process)
                raise
    return ProcessExit(code, time.monotonic() - start, log)


@contextmanager
def _on_cores(cores: Collection[int] | None) -> Iterator[None]:
    """Keep processes that this thread starts in the block on these cores.

    A process inherits the cores of the thread that starts it. It thus has them before it imports anything, and torch
    starts as many threads as there are.
    """
    if cores is None:
        yield
        return
    ours = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, ours)


def run_replica(  # noqa: PLR0913  # one keyword for each thing that a replica has of its own
    config: pytest.Config,
    tests: Sequence[str],
    journal: Path,
    *,
    session_id: str,
    extra: Sequence[str] = (),
    watch: Callable[[int], bool] | None = None,
) -> ProcessExit:
    """Run some of a run's tests in a fresh subprocess, which compares nothing.

    Args:
        config: of the run.
        tests: keys of its tests.
        journal: file for the results; the output goes beside it.
        session_id: of the run.
        extra: additional arguments.
        watch: as for `run_perf_tests`.
    """
    return run_perf_tests(
        [*_replica_arguments(config, tests, journal), *extra],
        folder=config.invocation_params.dir,
        environment={**os.environ, "LLMPERF_SESSION_ID": session_id},
        log=journal.with_suffix(".log"),
        watch=watch,
    )


def _wait(process: subprocess.Popen[bytes], deadline: float | None, watch: Callable[[int], bool] | None) -> int:
    if deadline is None and watch is None:
        return process.wait()
    while process.poll() is None:
        if (deadline is not None and time.monotonic() > deadline) or (watch and watch(process.pid)):
            _kill(process)
            return TIMED_OUT
        time.sleep(POLL_INTERVAL_S)
    return process.returncode


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and its descendants."""
    with suppress(psutil.Error):
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.Error):
                child.kill()
    process.kill()


def _replica_arguments(config: pytest.Config, tests: Sequence[str], journal: Path) -> list[str]:
    """Return a run's arguments for the named tests, with the journal as the only output."""
    worker = getattr(config, "workerinput", None)
    given = worker["llmperf_arguments"] if worker else map(str, config.invocation_params.args)
    arguments = [
        *without_outputs(list(given)),
        "--llmperf-measure-only",
        f"--llmperf-journal={journal}",
    ]
    if worker:
        arguments += _pinned_to(config, worker["llmperf_device"])
    if config.pluginmanager.has_plugin("xdist"):
        arguments.append("-n0")  # the ini file may ask for workers
    if config.getoption("xmlpath", None):
        arguments.append(f"--junit-xml={journal.with_suffix('.xml')}")
    return [*arguments, *only_tests(tests)]


def _pinned_to(config: pytest.Config, device: str) -> list[str]:
    """Return arguments that keep a subprocess on a worker's device; the last one of a repeated option wins.

    An index is used instead of ``CUDA_VISIBLE_DEVICES``, so that a device has one name in all processes of a run.
    """
    options = {"--device": "llmperf_short_device", "--llmperf-device": "llmperf_device"}
    given = [flag for flag, name in options.items() if config.getoption(name, None)]
    return [f"{flag}={device}" for flag in given or ["--llmperf-device"]]


def only_tests(tests: Sequence[str]) -> list[str]:
    """Return the arguments that run only these tests, by their keys; all tests if there are none."""
    return [f"--llmperf-only={test}" for test in tests]


def without_outputs(arguments: Sequence[str]) -> list[str]:
    """Return a run's arguments without those that write files, start a debugger or start workers.

    The remaining ones select and configure the tests. A replica must not overwrite the reports of its original.
    """
    return _outputs().parse_known_args(list(arguments))[1]


def _outputs() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in _WRITING_FLAGS:
        parser.add_argument(flag, action="store_true")
    for flag in _WRITING_OPTIONS:
        parser.add_argument(flag, action="append")
    for flag in _WRITING_WITH_OR_WITHOUT_A_NAME:
        parser.add_argument(flag, action="append", nargs="?")
    return parser
