"""One execution a test: a perf test runs once, whichever plugin would repeat it.

Plugins repeat tests in three ways. Those that replace pytest's protocol (rerunfailures, flaky, forked) never get a perf
test. Those that run a phase again inside another hook (retry) get an error, and the first outcome stands. Those that
parametrize (repeat) have all but the first repetition taken out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
from _pytest.runner import runtestprotocol  # what pytest's own protocol and every plugin that replaces it calls

from pytest_llmperf.errors import UsageError

RunTest = Callable[[pytest.Item, pytest.Item | None], list[pytest.TestReport]]


class Repeater(NamedTuple):
    """An option of a plugin that repeats tests."""

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
"""The parameter that pytest-repeat, and what was made after it, adds to a test."""


@dataclass
class ItemExecution:
    """What is known of an item's one execution."""

    began: set[str] = field(default_factory=set)
    """Its phases that began."""
    repeated: bool = False
    """Whether somebody tried to run one of them again."""
    judged: bool = False
    first: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """By phase, the outcome as it was first reported."""


EXECUTION: pytest.StashKey[ItemExecution] = pytest.StashKey()


def execution_of(item: pytest.Item) -> ItemExecution:
    """The execution of an item, which has begun or not."""
    return item.stash.setdefault(EXECUTION, ItemExecution())


@contextmanager
def only_once(item: pytest.Item, phase: str) -> Iterator[None]:
    """Run a phase of a test inside this block; the second time, it fails in one line and runs nothing."""
    known = execution_of(item)
    if phase in known.began:
        known.repeated = True
        raise pytest.fail.Exception(AGAIN, pytrace=False)
    known.began.add(phase)
    yield


class Protocol:
    """Registered where perf tests run: runs each once, instead of every other plugin that would.

    Args:
        run: that runs a test and returns its reports; ``None`` for pytest's own way, in this process.
    """

    def __init__(self, run: RunTest | None = None) -> None:
        self._run = run
        self._ran: set[str] = set()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool:
        """Run a test as pytest does, unless it has run."""
        if item.nodeid not in self._ran:
            self._ran.add(item.nodeid)
            item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
            self.execute(item, nextitem)
            item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Take back what a plugin reports that ran a phase again."""
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
    """Log all of a test's reports, also where another plugin's hook raises at one of them."""
    with ExitStack() as stack:
        for report in reversed(reports):
            stack.callback(item.ihook.pytest_runtest_logreport, report=report)


def remember(item: pytest.Item, report: pytest.TestReport) -> None:
    """Keep how a phase was first reported."""
    outcome = (report.outcome, report.longrepr, getattr(report, "wasxfail", None))
    execution_of(item).first.setdefault(str(report.when), outcome)


def _restore(item: pytest.Item, report: pytest.TestReport) -> None:
    """What ran a phase again has reported what came of that."""
    known = execution_of(item)
    if not known.repeated or str(report.when) not in known.first:
        return
    report.outcome, report.longrepr, expected = known.first[str(report.when)]
    vars(report).pop("wasxfail", None)
    if expected is not None:
        report.wasxfail = expected


def ignored_options(config: pytest.Config) -> list[str]:
    """The options that were given to plugins that repeat tests, which perf tests do not follow."""
    loaded = [one for one in REPEATERS if config.pluginmanager.has_plugin(one.plugin)]
    given = {one.option: config.getoption(one.name, None) for one in loaded}
    return [one.option for one in loaded if (given[one.option] or one.default) != one.default]


def is_repetition(item: pytest.Item) -> bool:
    """Whether a plugin made this item to run a test again.

    Raises:
        UsageError: it may have, by a parameter that is not known here.
    """
    for name, value in _parameters(item).items():
        if _STEP.fullmatch(name):
            return bool(value)
        if name.startswith("__"):
            raise UsageError(
                f"{item.nodeid}: a plugin repeats this test, by its parameter {name}; a perf test runs once: leave "
                "that plugin's option out"
            )
    return False


def unrepeated(item: pytest.Item) -> str:
    """The node id that an item has where no plugin repeats tests."""
    names = [*_parameters(item)]
    step = next(filter(_STEP.fullmatch, names), None)
    if step is None:
        return item.nodeid
    callspec = item.callspec  # type: ignore[attr-defined]  # it has parameters
    ids = [*callspec._idlist]  # noqa: SLF001  # pytest has no public way to ask
    del ids[names.index(step) - len(names)]  # from the end: parameters before it may share an id
    return item.nodeid.removesuffix(f"[{callspec.id}]") + (f"[{'-'.join(ids)}]" if ids else "")


def _parameters(item: pytest.Item) -> dict[str, Any]:
    callspec = getattr(item, "callspec", None)
    return callspec.params if callspec else {}
