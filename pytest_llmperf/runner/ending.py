"""End of a run: writes the results, sets the exit code and prints the summary, even if other plugins raise."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from pytest_llmperf.runner import WORKPLACE
from pytest_llmperf.runner.context import Workplace
from pytest_llmperf.runner.session import Session, one_line

TROUBLE = "llmperf_trouble"
"""Key of a worker's output to the xdist controller: the error with which the worker's run ended."""
DEAD = "llmperf_dead"
"""Key of the same output: why the worker's device died."""

NOT_RELEASED = "the model could not be released"
_NOT_FAILED = (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
_ENDED = (*_NOT_FAILED, pytest.ExitCode.TESTS_FAILED)


class Ending:
    """Ends an active run; registered in its xdist workers too.

    Args:
        config: of the run.
        running: the run; ``None`` in a worker, whose controller has it.
    """

    def __init__(self, config: pytest.Config, running: Session | None) -> None:
        self._config = config
        self._running = running
        self._session: pytest.Session | None = None
        self._is_written = False
        self._is_told = False

    @pytest.hookimpl(trylast=True)
    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Store the session; until then there is nothing to end."""
        self._session = session

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None, object, object]:
        """Write before any other plugin does, and set the exit code after all of them."""
        self._write(session)
        try:
            return (yield)
        finally:
            self._conclude(session)

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_terminal_summary(self) -> Generator[None, object, object]:
        """Print the summary below the output of other plugins, even if one of them raises."""
        try:
            return (yield)
        finally:
            self._tell()

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self) -> None:
        """Finish what earlier hooks could not do because another plugin's hook raised or ran later."""
        if self._session:
            self._write(self._session)
            self._conclude(self._session)

    def _write(self, session: pytest.Session) -> None:
        if self._is_written:
            return
        self._is_written = True
        workplace = self._config.stash.get(WORKPLACE, None)
        if self._running is None:
            self._release_worker(workplace)
            return
        if workplace and workplace.dead:
            _note_death(workplace, self._running)
        elif workplace:
            with self._running.noting(NOT_RELEASED):
                workplace.release()
        self._finish(session, self._running)

    def _release_worker(self, workplace: Workplace | None) -> None:
        output: dict[str, Any] = self._config.workeroutput  # type: ignore[attr-defined]  # set by xdist
        if workplace and workplace.dead:
            output[DEAD] = workplace.dead
            return
        try:
            if workplace:
                workplace.release()
        except Exception as error:  # noqa: BLE001  # any error: the controller reports it
            output[TROUBLE] = f"{NOT_RELEASED}: {one_line(error)}"

    def _finish(self, session: pytest.Session, running: Session) -> None:
        outcome = running.outcome
        with running.noting("the baseline could not be updated"):
            failed = session.testsfailed > 0 or outcome.failed
            running.finish(failed=failed, interrupted=session.exitstatus not in _ENDED)
        if outcome.update:
            from pytest_llmperf.runner.profiling import store_profiles

            with running.noting("operator profiles NOT stored"):
                outcome.profiles = store_profiles(self._config, running)
        self._fail(session)
        if not self._config.option.collectonly:
            arguments = [str(word) for word in self._config.invocation_params.args]
            running.write_outputs(arguments=arguments, exit_code=int(session.exitstatus))

    def _conclude(self, session: pytest.Session) -> None:
        self._fail(session)
        self._tell()

    def _fail(self, session: pytest.Session) -> None:
        """Set the exit code by the verdicts, whatever pytest or another plugin counted."""
        found = self._running.outcome if self._running and not self._config.option.collectonly else None
        if found is None:
            return
        # xdist interrupts the run when a worker stops.
        stopped = bool(found.dead) and session.exitstatus == pytest.ExitCode.INTERRUPTED
        if stopped or ((found.failed or found.breach) and session.exitstatus in _NOT_FAILED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _tell(self) -> None:
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        refused = self._session is None or self._session.exitstatus == pytest.ExitCode.USAGE_ERROR
        if self._is_told or refused or self._running is None or self._config.option.collectonly or reporter is None:
            return
        self._is_told = True
        from pytest_llmperf.report.terminal import write_summary

        write_summary(reporter, self._running.outcome)


def _note_death(workplace: Workplace, running: Session) -> None:
    """Record the tests that were not run because the device died, in the journal too."""
    left = workplace.not_begun
    running.outcome.dead, running.outcome.not_run = workplace.dead, len(left)
    for test in left:
        running.keep(workplace.entry(test, [], error=f"not run: {workplace.dead}"))
