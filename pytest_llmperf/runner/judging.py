"""Judge each perf test as it ends, and collect the results of all."""

from __future__ import annotations

import pytest

from pytest_llmperf.runner import FIXTURE, TIMER, WORKPLACE
from pytest_llmperf.runner.once import execution_of
from pytest_llmperf.runner.perf_test import test_key
from pytest_llmperf.runner.session import Session
from pytest_llmperf.verdict.outcome import XPASS_STRICT, Entry, entry_of, settle


class Collector:
    """Collects the results of each test; registered on the controller of an active run."""

    def __init__(self, config: pytest.Config, session: Session) -> None:
        self._config = config
        self._session = session

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Collect a report's entry first, because another plugin's hook may raise."""
        if (entry := entry_of(report)) and self._session.collect(entry):
            _explain(report, entry, self._config)


def _explain(report: pytest.TestReport, entry: Entry, config: pytest.Config) -> None:
    """Add to a failed test's report why its figures changed; pytest shows the section below the failure."""
    why = entry.why
    if why is None:
        return
    from pytest_llmperf.report.text_table import PIPE_COLUMNS
    from pytest_llmperf.report.why_text import why_text

    reporter = config.pluginmanager.get_plugin("terminalreporter")
    width = reporter._tw.fullwidth if reporter else PIPE_COLUMNS  # noqa: SLF001  # pytest has no public API for it
    report.sections.append(("llmperf: why", why_text(why, width)))


def judge(item: pytest.Item, report: pytest.TestReport) -> None:
    """Judge a perf test by the report of its body, or of a setup that failed; a regression fails the report."""
    known = execution_of(item)
    if report.skipped or known.judged:
        return
    known.judged = True
    workplace, fixture = item.config.stash[WORKPLACE], item.stash.get(FIXTURE, None)
    results, timed = fixture.results if fixture else [], item.stash.get(TIMER, None)
    # If llmperf was to measure a model and did not, timings of cuda_timer do not make up for that.
    if timed and (results or not fixture):
        results = [*results, *timed.results]
    entry = workplace.entry(test_key(item), results, timings=timed.lines if timed else (), error=_error_line(report))
    # Set on both: the JUnit file uses the teardown's report, which pytest fills from the item.
    report.user_properties += entry.figures
    item.user_properties += entry.figures
    settle(report, entry, confirm=workplace.options.confirms)


def _error_line(report: pytest.TestReport) -> str:
    """Return the first line of a failed test's error; empty if it passed, or failed as a strict xfail that passed."""
    if report.passed or report.longreprtext.startswith(XPASS_STRICT):
        return ""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash else report.longreprtext
    return next(iter(text.strip().splitlines()), "failed").removeprefix("pytest_llmperf.errors.")
