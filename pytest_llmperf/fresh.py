"""Running perf tests in a fresh process: the unit of replication for recording, confirming and comparing."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

TIMED_OUT = 124
"""The exit code of a process that was killed for taking too long, as timeout(1) has it."""

_WRITING_FLAGS = (
    *("--pdb", "--trace", "--no-cov", "--cov-append", "--benchmark-autosave", "--json-report"),
    *("--llmperf-update", "--llmperf-update-new-only", "--llmperf-force-update"),
)
_WRITING_OPTIONS = (
    *("--junitxml", "--junit-xml", "--report-log", "--log-file", "--html", "--json-report-file", "--pastebin"),
    *("--benchmark-json", "--benchmark-save", "--benchmark-storage", "--cov-report", "--cov-config"),
    *("-n", "--numprocesses", "--maxprocesses", "--dist", "--tx", "--basetemp"),
    *("--llmperf-json", "--llmperf-verdicts", "--llmperf-confirm"),
)


@dataclass(frozen=True)
class Ended:
    """How a fresh process ended: pytest's exit code, its wall time, and where its output went."""

    exit_code: int
    seconds: float
    log: Path | None

    @property
    def last_words(self) -> str:
        """The last line that tells something, of what the process printed."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines() if self.log else []
        telling = [line.strip() for line in lines if line.startswith(("E  ", "ERROR", "FAILED", "error:"))]
        return next(reversed(telling or [line for line in lines if line.strip()]), "it printed nothing")


def run_perf_tests(  # noqa: PLR0913  # one keyword for each thing that a process inherits or not
    arguments: Sequence[str],
    *,
    python: str = sys.executable,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    log: Path | None = None,
    timeout_s: float | None = None,
) -> Ended:
    """Run ``pytest --llmperf`` with these arguments in a process of its own.

    Args:
        arguments: of pytest.
        python: the interpreter, of an environment that has this package.
        folder: working directory (default: ours).
        environment: of the process (default: ours).
        log: file for its output (default: where ours goes).
        timeout_s: seconds after which it is killed; it then ends with `TIMED_OUT`.
    """
    command = [python, "-m", "pytest", "--llmperf", *arguments]
    start = time.monotonic()
    with (log or Path("/dev/null")).open("ab") as file:
        output = file if log else None
        stdin = subprocess.DEVNULL if log else None
        try:
            code = subprocess.run(
                command, cwd=folder, env=environment, stdin=stdin, stdout=output, stderr=output,
                timeout=timeout_s, check=False,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            code = TIMED_OUT
    return Ended(code, time.monotonic() - start, log)


def without_outputs(arguments: Sequence[str]) -> list[str]:
    """A run's arguments without those that write something, ask somebody or start workers.

    What is left selects and configures the tests: a replica that runs beside its original must not overwrite the
    original's reports.
    """
    return _outputs().parse_known_args(list(arguments))[1]


def _outputs() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in _WRITING_FLAGS:
        parser.add_argument(flag, action="store_true")
    for flag in _WRITING_OPTIONS:
        parser.add_argument(flag, action="append")
    parser.add_argument("--cov", action="append", nargs="?")
    return parser
