"""Running the perf tests in a fresh process: the unit of replication."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence


def run_perf_tests(arguments: Sequence[str]) -> int:
    """Run ``pytest --llmperf`` with these arguments in a process of its own; its output goes where ours goes.

    Returns:
        pytest's exit code.
    """
    command = [sys.executable, "-m", "pytest", "--llmperf", *arguments]
    return subprocess.run(command, check=False).returncode
