"""Processes with a time limit, and what they say."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import psutil

_LOOK_EVERY_S = 0.5
_LONGEST_DEATH_S = 10.0
"""A process that waits inside the driver may not die at once, or never: nobody waits longer for it."""


@dataclass(frozen=True)
class ProcessExit:
    """How a process ended."""

    code: int | None
    """``None`` where it was killed at its limit."""
    output: str
    seconds: float


class Processes:
    """Starts processes and can kill all that still run, from any thread."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.RLock()  # a signal may come while this thread holds it
        self._is_over = False

    def run(self, command: Sequence[str], *, limit_s: float, output: Path, variables: Mapping[str, str]) -> ProcessExit:
        """Run to the end or to the limit; all that it started is killed then.

        Args:
            command: and its arguments.
            limit_s: seconds until it is killed.
            output: file for all that it prints, which holds it also where this process is killed.
            variables: added to the environment.
        """
        start = time.monotonic()
        process = self.start(command, output=output, variables=variables)
        try:
            code = process.wait(timeout=max(limit_s, 0.0))
        except subprocess.TimeoutExpired:
            code = None
        self._end(process)
        return ProcessExit(code, output.read_text(encoding="utf-8", errors="replace"), time.monotonic() - start)

    def start(self, command: Sequence[str], *, output: Path, variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Start a process in the background."""
        with self._lock, output.open("wb") as file:
            if self._is_over:
                raise InterruptedError("no process is started any more")
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
                env={**os.environ, **variables},
            )  # fmt: skip
            self._running.add(process)
        return process

    def kill_all(self) -> None:
        """Kill what runs, and start nothing more."""
        with self._lock:
            self._is_over = True
            running = list(self._running)
        for process in running:
            self._end(process)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        kill_tree(process.pid)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_LONGEST_DEATH_S)
        with self._lock:
            self._running.discard(process)


def kill_tree(leader: int) -> None:
    """Kill what the leader of a group has started, in the group or not, and the group."""
    children: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        children = psutil.Process(leader).children(recursive=True)
    for child in children:
        with contextlib.suppress(psutil.Error):
            child.kill()
    # The group outlives its leader as long as one of its processes lives.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def end_with_parent() -> None:
    """Kill this process, which leads a group, and all that it started, once its parent is gone.

    A parent that is killed cannot do it, and what is left on the device would disturb the next run.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_EVERY_S)
        kill_tree(os.getpid())

    threading.Thread(target=watch, daemon=True).start()


def echo(
    command: Sequence[str], *, folder: Path | None = None, variables: Mapping[str, str] = MappingProxyType({})
) -> tuple[int, str]:
    """Run a command of a step, and print what it prints as it comes.

    Returns:
        Its exit code, and all that it printed.
    """
    print("$", *command, flush=True)
    said = []
    with subprocess.Popen(
        command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        encoding="utf-8", errors="replace", env={**os.environ, **variables},
    ) as process:  # fmt: skip
        for line in process.stdout or ():
            print(line, end="", flush=True)
            said.append(line)
    return process.returncode, "".join(said)
