"""Timer signals: whether they can come, and what they must not cut short."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


def can_interrupt() -> bool:
    """Whether this system has a timer signal, and this thread receives it."""
    return hasattr(signal, "SIGALRM") and threading.current_thread() is threading.main_thread()


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Clean up without a time limit, or its reminders, cutting that short; it counts on afterwards."""
    if not can_interrupt():
        yield
        return
    left_s, again_s = signal.setitimer(signal.ITIMER_REAL, 0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left_s, again_s)
