"""Live progress line on a terminal: the test's phase, tokens so far and running median TPOT."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from statistics import median
from typing import TYPE_CHECKING, Any

from pytest_llmperf.measure.progress import SETUP, TEST_BODY

if TYPE_CHECKING:
    from pytest_llmperf.engines.executions.request import RequestTimes

_SAVE, _RESTORE, _ERASE = "\x1b7", "\x1b8", "\x1b[K"
_NARROWEST = 20
"""Minimum of free columns behind pytest's output."""


class LiveLine:
    """Writes behind pytest's output for the current test, and restores the cursor.

    It is drawn between phases and requests, never during one.

    Args:
        reporter: pytest's terminal reporter.
        uncaptured: returns a context in which writes reach the terminal, although the test's output is captured.
    """

    def __init__(self, reporter: Any, uncaptured: Callable[[], AbstractContextManager[None]]) -> None:
        self._reporter = reporter
        self._uncaptured = uncaptured
        self._tpots: list[float] = []
        self._tokens = 0
        self._shown = False

    @classmethod
    def fits(cls, reporter: Any) -> bool:
        """Whether output goes to a terminal and ``-q`` is not given."""
        return reporter is not None and reporter.verbosity >= 0 and reporter.isatty and reporter.hasmarkup

    def enter(self, phase: str) -> None:
        """Show the phase that starts; a test's own code shows nothing."""
        self._tpots, self._tokens = [], 0
        text = "" if phase in (SETUP, TEST_BODY) else phase
        if text or self._shown:
            self._write(text)
        self._shown = bool(text)

    def request(self, times: RequestTimes) -> None:
        """Show the figures after a request."""
        self._tokens += times.output_tokens
        if times.tpot_ms is not None:
            self._tpots.append(times.tpot_ms)
        running = f", TPOT {median(self._tpots):.2f} ms" if self._tpots else ""
        self._write(f"{self._tokens} tokens per sequence{running}")

    def _write(self, text: str) -> None:
        writer = self._reporter._tw  # noqa: SLF001  # pytest has no public API for its width
        left = writer.fullwidth - writer.width_of_current_line - 1
        if left >= _NARROWEST:
            with self._uncaptured():
                # Not the writer's own `write`, which would count the escapes as text of the line.
                writer._file.write(f"{_SAVE}{text[:left]}{_ERASE}{_RESTORE}")  # noqa: SLF001  # write_raw needs pytest 9
                writer.flush()
