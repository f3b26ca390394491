"""Run commands as a user types them into a shell."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from import_server.forking_popen import shell_programs


def user_environment(**more: str) -> dict[str, str]:
    """Return an environment without CI and xdist variables, with this environment's programs first in ``PATH``."""
    names = ("CI", "BUILD_NUMBER", "GITHUB_RUN_ID", "CI_JOB_ID", "LLMPERF_SESSION_ID", "PYTEST_XDIST_WORKER")
    kept = {name: value for name, value in os.environ.items() if name not in names}
    author = {f"GIT_{role}_{what}": "a@example.com" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    path = os.pathsep.join(filter(None, [shell_programs(), str(Path(sys.executable).parent), kept["PATH"]]))
    return {**kept, **author, "PATH": path, **more}


def run_script(script: str, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a shell script, which stops at the first command that fails."""
    command = ["bash", "-euo", "pipefail", "-c", script]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
