"""Process ids of one run, so that its own processes do not count as strangers on its device.

A run is the outermost process, pytest or the ``llmperf`` command, and all that it starts: fresh runs that confirm,
isolated processes of models, xdist's workers. Environment variables tell each process which one is the outermost, and
how many of its ancestors use the device.
"""

from __future__ import annotations

import os

import psutil

RUN_VARIABLE = "LLMPERF_RUN_PID"
"""Holds the id of the run's outermost process."""
USERS_VARIABLE = "LLMPERF_DEVICE_USERS"
"""Holds how many ancestors of a process use the device; they do so until they end."""


def _whole_number(variable: str) -> int:
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() else 0


USERS_ABOVE = _whole_number(USERS_VARIABLE)
"""Number of this process's ancestors that use the device."""


def begin_run() -> None:
    """Make this process the outermost of a run, unless it belongs to one."""
    os.environ.setdefault(RUN_VARIABLE, str(os.getpid()))


def begin_use() -> None:
    """Record, for the processes that this one will start, that it uses the device."""
    os.environ[USERS_VARIABLE] = str(USERS_ABOVE + 1)


def run_process_ids() -> set[int]:
    """Return the ids of all processes of this run and of this process's ancestors."""
    try:
        process = psutil.Process()
        above = process.parents()
        outermost = next((one for one in above if one.pid == _whole_number(RUN_VARIABLE)), process)
        below = outermost.children(recursive=True)
    except psutil.Error:  # one of them has just ended
        return {os.getpid()}
    return {one.pid for one in (process, *above, *below)}
