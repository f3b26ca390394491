"""Timer signals: whether they are available, and protection of code that they must not interrupt."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


def can_interrupt() -> bool:
    """Whether this system has a timer signal that this thread receives."""
    return hasattr(signal, "SIGALRM") and threading.current_thread() is threading.main_thread()


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Suspend the timer signal in this block, so that no time limit cuts a clean-up short; resume it afterwards."""
    if not can_interrupt():
        yield
        return
    left_s, again_s = signal.setitimer(signal.ITIMER_REAL, 0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left_s, again_s)
