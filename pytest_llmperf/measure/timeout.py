"""Time limits and out-of-memory handling: a test's stage fails with a one-line error, and other tests continue."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pytest_llmperf.errors import MeasurementError
from pytest_llmperf.hardware.memory import is_out_of_memory
from pytest_llmperf.measure.progress import Progress
from pytest_llmperf.models.load import forget_locals
from pytest_llmperf.models.model_registry import free_memory
from pytest_llmperf.system.interrupts import can_interrupt
from pytest_llmperf.text import first_line

REMIND_S = 5.0
"""Seconds between a time limit's signals. The first may be raised where Python ignores exceptions, such as in a garbage
collector callback."""


@contextmanager
def contained(progress: Progress, device: str, *, phase: str, limit_s: float | None) -> Iterator[None]:
    """Run a stage of a test in phase ``phase``, for at most ``limit_s`` seconds.

    Raises:
        MeasurementError: the stage exceeded memory, which has been freed, or time.
    """
    progress.enter(phase)
    try:
        with time_limit(limit_s, progress):
            yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        message = one_line(error, progress)
        give_back(error, device)
        raise MeasurementError(message) from error


def one_line(error: Exception, progress: Progress) -> str:
    """The error's type and message, the phase, and the memory in use."""
    return f"{type(error).__name__} {progress.moment()}: {first_line(error)}"


def give_back(error: Exception, device: str) -> None:
    """Release memory held by the error's traceback, so that the next test has room."""
    forget_locals(error)
    free_memory(device)


@contextmanager
def time_limit(seconds: float | None, progress: Progress) -> Iterator[None]:
    """Interrupt Python code after a time limit. A call that never returns to Python is not interrupted.

    Does nothing without a limit, without a timer signal, or inside a nearer limit set by other code.
    """
    other_s = signal.getitimer(signal.ITIMER_REAL)[0] if can_interrupt() else 0.0
    if seconds is None or not can_interrupt() or 0 < other_s <= seconds:
        yield
        return

    def expire(_signal: int, _frame: FrameType | None) -> None:
        raise MeasurementError(timed_out(seconds, str(progress.moment())))

    start, before = time.monotonic(), signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds, REMIND_S)
    try:
        yield
    finally:
        left_s = max(other_s - (time.monotonic() - start), 1e-3) if other_s else 0.0
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, left_s)


def timed_out(seconds: float, moment: str) -> str:
    """The error message of a test that took too long."""
    return f"timed out after {seconds:g} s {moment}: increase --llmperf-timeout"
