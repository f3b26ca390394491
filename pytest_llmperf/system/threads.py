"""Run jobs that wait for subprocesses at the same time, and end all of them if one fails."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

Found = TypeVar("Found")
Watch = Callable[[int], bool]
"""As for `run_perf_tests`: gets a process's id, and returns whether to kill it."""


def run_together(jobs: Sequence[Callable[[Watch], Found]]) -> list[Found]:
    """Run each job in a thread of its own, and return their results in order.

    The first error of a job, or an interruption of this thread, is raised after the processes of all jobs have ended.

    Args:
        jobs: each passes its argument to the processes that it starts.
    """
    stop = threading.Event()

    def watch(_pid: int) -> bool:
        return stop.is_set()

    with ThreadPoolExecutor(max_workers=len(jobs)) as pool:
        try:
            futures = [pool.submit(job, watch) for job in jobs]
            for future in as_completed(futures):
                future.result()
        except BaseException:
            stop.set()
            raise
    return [future.result() for future in futures]
