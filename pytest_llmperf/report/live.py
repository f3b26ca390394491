"""A line that lives while a test is timed: tokens so far and the running median TPOT. On a terminal, at ``-v``."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_llmperf.measure.request import RequestTimes

_SAVE, _RESTORE, _ERASE = "\x1b7", "\x1b8", "\x1b[K"
_NARROWEST = 20
"""Columns that must be left behind a test's name."""


class LiveLine:
    """Writes behind what pytest has written of the present test, and leaves the cursor there.

    It is drawn between requests, never inside one.

    Args:
        reporter: pytest's terminal reporter.
        uncaptured: gives a context in which a write reaches the terminal, although the test's own output is captured.
    """

    def __init__(self, reporter: Any, uncaptured: Callable[[], AbstractContextManager[None]]) -> None:
        self._reporter = reporter
        self._uncaptured = uncaptured
        self._tpots: list[float] = []
        self._tokens = 0

    @classmethod
    def fits(cls, reporter: Any) -> bool:
        """Whether somebody looks at a terminal, and wants to see more than dots."""
        return reporter is not None and reporter.verbosity > 0 and reporter.isatty and reporter.hasmarkup

    def enter(self, _phase: str) -> None:
        """Another phase begins: what was shown is over."""
        if self._tokens:
            self._write("")
        self._tpots, self._tokens = [], 0

    def request(self, times: RequestTimes) -> None:
        """A request has ended."""
        self._tokens += len(times.itl_ms) + 1
        if times.tpot_ms is not None:
            self._tpots.append(times.tpot_ms)
        running = f", TPOT {median(self._tpots):.2f} ms" if self._tpots else ""
        self._write(f"{self._tokens} tokens a sequence{running}")

    def _write(self, text: str) -> None:
        writer = self._reporter._tw  # noqa: SLF001  # pytest offers no other way to its width
        left = writer.fullwidth - writer.width_of_current_line - 1
        if left >= _NARROWEST:
            with self._uncaptured():
                self._reporter.write_raw(f"{_SAVE}{text[:left]}{_ERASE}{_RESTORE}", flush=True)
