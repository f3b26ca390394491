"""Hooks that only runs with ``--llmperf`` have.

`pytest_llmperf.plugin` registers them ahead of conftests, which may set variables that libraries read when they are
imported. So this module imports none of them.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import pytest

from pytest_llmperf.errors import Unavailable
from pytest_llmperf.hardware.device import worker_devices
from pytest_llmperf.models.spec import ModelSpec
from pytest_llmperf.runner import COLLECTED, OPTIONS, WORKPLACE, as_usage_errors, own_fixtures
from pytest_llmperf.runner.config import given_device
from pytest_llmperf.runner.once import ignored_options, only_once, remember
from pytest_llmperf.runner.perf_test import test_key


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Make ``-n auto`` start one worker per device."""
    with as_usage_errors():
        return len(worker_devices(given_device(config)))


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Show the device and the baselines, and which options of other plugins are ignored."""
    given = config.stash[OPTIONS]
    injected = f", INJECTED {', '.join(map(str, given.injections))}" if given.injections else ""
    lines = [f"llmperf: device {given.device}, baselines in {given.baselines}{injected}"]
    if ignored := ignored_options(config):
        lines.append(f"llmperf: each perf test runs once, in this process: ignored {', '.join(ignored)}")
    return lines


@pytest.hookimpl(trylast=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize ``llm`` and ``engine`` unless the test does so itself."""
    given = metafunc.config.stash[OPTIONS]
    for name, specs in (("llm", given.specs), ("engine", given.served)):
        calls = metafunc._calls  # noqa: SLF001  # pytest has no public API for the parameters that a test has
        if name in own_fixtures(metafunc.definition) and not any(name in call.params for call in calls):
            metafunc.config.stash[COLLECTED].by_options.add(test_key(metafunc.definition))
            metafunc.parametrize(name, specs, indirect=True)


def pytest_make_parametrize_id(val: object) -> str | None:
    """Give model specs stable ids, because baselines contain them."""
    return str(val) if isinstance(val, ModelSpec) else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Record missing tests and environment differences, after all plugins have deselected tests."""
    if WORKPLACE in session.config.stash:
        from pytest_llmperf.runner.startup import tell_found

        tell_found(session.config, session.items)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    """Set up once; report out-of-memory, timeout and device errors in one line."""
    with _skipping_unavailable(), _alone(item, "setup"), _contained(item, "setup"):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Call once; report out-of-memory, timeout and device errors in one line."""
    with _skipping_unavailable(), _alone(item, "call"), _contained(item, "test body"):
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Call a perf test's function once, even if another plugin runs the item again."""
    with _alone(pyfuncitem, "function"):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Judge a perf test when it ends; a regression fails its report."""
    report = yield
    if WORKPLACE in item.config.stash:
        from pytest_llmperf.runner.judging import judge

        if call.when == "call" or (call.when == "setup" and report.failed):
            judge(item, report)
        remember(item, report)
    return report


@contextmanager
def _skipping_unavailable() -> Iterator[None]:
    """Skip a test that needs something unavailable here, with the reason."""
    try:
        yield
    except Unavailable as error:  # of this machine, not of the code; a skipped test counts as not decided
        pytest.skip(str(error))


def _alone(item: pytest.Item, phase: str) -> AbstractContextManager[None]:
    return only_once(item, phase) if WORKPLACE in item.config.stash else nullcontext()


@contextmanager
def _contained(item: pytest.Item, phase: str) -> Iterator[None]:
    """Contain errors in a phase of a perf test; if the device died, stop the session."""
    workplace = item.config.stash.get(WORKPLACE, None)
    if workplace is None:
        yield
        return
    try:
        with workplace.contained(test_key(item), phase):
            yield
    finally:
        if workplace.dead:
            item.session.shouldfail = f"{workplace.device} died"
