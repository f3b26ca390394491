"""A pytest plugin that writes a result line for each test as it ends, and one for the properties of a test."""

from __future__ import annotations

import pytest

from gpu.results import Results


def pytest_configure(config: pytest.Config) -> None:
    """Listen, but not in the workers of pytest-xdist, whose controller hears of all tests."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Lines(Results.of_this_step()))


class Lines:
    """Writes lines of one step."""

    def __init__(self, results: Results) -> None:
        self._results = results

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A phase of a test has ended: one that passed says nothing before the test itself has run."""
        if report.skipped:
            self._results.skip(report.nodeid, _reason(report))
        elif report.when == "call" or report.failed:
            self._results.compare(report.nodeid, expected="passed", found=_found(report), holds=report.passed)
            if report.passed and report.user_properties:
                self._results.measured(
                    f"{report.nodeid}: properties", ", ".join(map(_property, report.user_properties))
                )

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that cannot be imported has no tests that could say so."""
        if report.failed:
            self._results.fail(report.nodeid, expected="collected", found=_found(report))


def _property(named: tuple[str, object]) -> str:
    name, value = named
    return f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"


def _reason(report: pytest.TestReport) -> str:
    """Why a test was skipped: pytest keeps path, line and reason."""
    return report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)


def _found(report: pytest.TestReport | pytest.CollectReport) -> str:
    """In one line."""
    if report.passed:
        return "passed"
    crash = getattr(report.longrepr, "reprcrash", None)
    return " ".join(str(crash.message if crash else report.longrepr).split())[:400]
