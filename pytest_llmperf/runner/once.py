"""Run each perf test exactly once, even if another plugin would repeat it.

Plugins repeat tests in three ways. Plugins that replace pytest's protocol (rerunfailures, flaky, forked) never get a
perf test. Plugins that run a phase again inside another hook (retry) get an error, and the first outcome stands.
Plugins that parametrize (repeat) have all but the first repetition deselected.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
from _pytest.runner import runtestprotocol  # pytest's own protocol and every plugin that replaces it call it

from pytest_llmperf.errors import UsageError

RunTest = Callable[[pytest.Item, pytest.Item | None], list[pytest.TestReport]]


class Repeater(NamedTuple):
    """A command-line option of a plugin that repeats tests."""

    plugin: str
    name: str
    option: str
    default: object = None


REPEATERS = (
    Repeater("rerunfailures", "reruns", "--reruns"),
    Repeater("rerunfailures", "force_reruns", "--force-reruns"),
    Repeater("flaky", "force_flaky", "--force-flaky", default=False),
    Repeater("pytest-retry", "retries", "--retries"),
    Repeater("repeat", "count", "--count", default=1),
    Repeater("pytest_forked", "forked", "--forked", default=False),
)
AGAIN = "llmperf: a perf test runs once; its first outcome stands"
_STEP = re.compile(r"__pytest_\w+_step_number")
"""The parameter that pytest-repeat, and plugins modelled on it, add to a test."""


@dataclass
class ItemExecution:
    """State of an item's only execution."""

    began: set[str] = field(default_factory=set)
    """The phases that have started."""
    repeated: bool = False
    """Whether a plugin tried to run a phase again."""
    judged: bool = False
    first: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """The first reported outcome of each phase."""


EXECUTION: pytest.StashKey[ItemExecution] = pytest.StashKey()


def execution_of(item: pytest.Item) -> ItemExecution:
    """Return the state of an item's execution; a new one if none has started."""
    return item.stash.setdefault(EXECUTION, ItemExecution())


@contextmanager
def only_once(item: pytest.Item, phase: str) -> Iterator[None]:
    """Run a phase of a test inside this block; a second run of the phase fails in one line."""
    known = execution_of(item)
    if phase in known.began:
        known.repeated = True
        raise pytest.fail.Exception(AGAIN, pytrace=False)
    known.began.add(phase)
    yield


class Protocol:
    """Runs each perf test once, ahead of other plugins that replace pytest's protocol.

    Args:
        run: runs a test and returns its reports; ``None`` for pytest's own protocol, in this process.
    """

    def __init__(self, run: RunTest | None = None) -> None:
        self._run = run
        self._ran: set[str] = set()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool:
        """Run a test as pytest does, unless it has already run."""
        if item.nodeid not in self._ran:
            self._ran.add(item.nodeid)
            item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
            self.execute(item, nextitem)
            item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Restore the first outcome if a plugin ran a phase again."""
        report = yield
        _restore(item, report)
        return report

    def execute(self, item: pytest.Item, nextitem: pytest.Item | None) -> None:
        """Run a test and log its reports."""
        if self._run:
            self.hand_over(item, self._run(item, nextitem))
        else:
            runtestprotocol(item, nextitem=nextitem)

    def hand_over(self, item: pytest.Item, reports: list[pytest.TestReport]) -> None:
        """Log a test's reports."""
        log_reports(item, reports)


def log_reports(item: pytest.Item, reports: Sequence[pytest.TestReport]) -> None:
    """Log all of a test's reports, even if another plugin's hook raises at one of them."""
    with ExitStack() as stack:
        for report in reversed(reports):
            stack.callback(item.ihook.pytest_runtest_logreport, report=report)


def remember(item: pytest.Item, report: pytest.TestReport) -> None:
    """Store how a phase was first reported."""
    outcome = (report.outcome, report.longrepr, getattr(report, "wasxfail", None))
    execution_of(item).first.setdefault(str(report.when), outcome)


def _restore(item: pytest.Item, report: pytest.TestReport) -> None:
    """Replace the outcome of a repeated phase with the first one."""
    known = execution_of(item)
    if not known.repeated or str(report.when) not in known.first:
        return
    report.outcome, report.longrepr, expected = known.first[str(report.when)]
    vars(report).pop("wasxfail", None)
    if expected is not None:
        report.wasxfail = expected


def ignored_options(config: pytest.Config) -> list[str]:
    """Return the given options of plugins that repeat tests; perf tests ignore them."""
    loaded = [one for one in REPEATERS if config.pluginmanager.has_plugin(one.plugin)]
    given = {one.option: config.getoption(one.name, None) for one in loaded}
    return [one.option for one in loaded if (given[one.option] or one.default) != one.default]


def is_repetition(item: pytest.Item) -> bool:
    """Whether a plugin created this item to repeat a test.

    Raises:
        UsageError: the item has an unknown parameter whose name starts with ``__``.
    """
    for name, value in _parameters(item).items():
        if _STEP.fullmatch(name):
            return bool(value)
        if name.startswith("__"):
            raise UsageError(
                f"{item.nodeid}: a plugin repeats this test with the parameter {name}; a perf test runs once: leave "
                "out that plugin's option"
            )
    return False


def unrepeated(item: pytest.Item) -> str:
    """Return the node id that an item has if no plugin repeats tests."""
    names = [*_parameters(item)]
    step = next(filter(_STEP.fullmatch, names), None)
    if step is None:
        return item.nodeid
    callspec = item.callspec  # type: ignore[attr-defined]  # it has parameters
    ids = [*callspec._idlist]  # noqa: SLF001  # pytest has no public API for it
    del ids[names.index(step) - len(names)]  # counted from the end: earlier parameters may share an id
    return item.nodeid.removesuffix(f"[{callspec.id}]") + (f"[{'-'.join(ids)}]" if ids else "")


def _parameters(item: pytest.Item) -> dict[str, Any]:
    callspec = getattr(item, "callspec", None)
    return callspec.params if callspec else {}
