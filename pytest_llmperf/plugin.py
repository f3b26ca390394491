"""pytest plugin: command-line options, marker, hooks and fixtures.

Every pytest run of every project that has this package installed imports this module, so it imports nothing heavy:
torch, transformers, pandas, scipy, rich and pydantic are imported only before perf tests run. It has few names, because
pytest looks at each one for hooks and for fixtures.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING

import pytest

from pytest_llmperf import runner
from pytest_llmperf.runner import options

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from contextlib import AbstractContextManager
    from typing import TypeVar

    from pytest_llmperf.engines.engine import Engine
    from pytest_llmperf.hardware.memory import PeakMemory
    from pytest_llmperf.measure.kernel import KernelTimer
    from pytest_llmperf.models.load import LoadedModel
    from pytest_llmperf.runner.fixtures import LlmPerf

    _Got = TypeVar("_Got")

PERF_FIXTURES = frozenset({*runner.MODEL_FIXTURES, "llmperf", "cuda_timer", "peak_memory"})
MARKER = (
    "llmperf(*, gate=None, tolerate=None, catch=None, requests=None, warmup=None, timeout=None): a perf test, run with "
    "--llmperf. gate: metrics that may fail it; tolerate: accepted slowdown; catch: slowdown to detect; requests, "
    "warmup: numbers of requests; timeout: time limit in seconds"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options."""
    options.add_options(parser)


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests(
    early_config: pytest.Config, parser: pytest.Parser, args: list[str]
) -> Generator[None, object, object]:
    """Take ``--device`` unless another plugin or a conftest has declared it."""
    result = yield
    with _as_usage_errors():
        options.take_device_option(early_config, parser, args)
    return result


def pytest_configure(config: pytest.Config) -> None:
    """Resolve the options, and reject at once those that cannot work."""
    config.addinivalue_line("markers", MARKER)
    with _as_usage_errors():
        if config.getoption("llmperf"):
            from pytest_llmperf.runner.startup import start_session

            start_session(config, _is_perf)
        elif forgotten := options.forgotten_flag(config):
            raise pytest.UsageError(f"{forgotten} needs --llmperf, which runs the perf tests")


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Show the device and the baselines of a perf run, and which options of other plugins it ignores."""
    given = config.stash.get(runner.OPTIONS, None)
    if given is None:
        return []
    from pytest_llmperf.runner.once import ignored_options

    injected = f", INJECTED {', '.join(map(str, given.injections))}" if given.injections else ""
    lines = [f"llmperf: device {given.device}, baselines in {given.baselines}{injected}"]
    if ignored := ignored_options(config):
        lines.append(f"llmperf: each perf test runs once, in this process: ignored {', '.join(ignored)}")
    return lines


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Make ``-n auto`` start one worker per device."""
    if not config.getoption("llmperf"):
        return None
    from pytest_llmperf.hardware.device import worker_devices
    from pytest_llmperf.runner.config import given_device

    with _as_usage_errors():
        return len(worker_devices(given_device(config)))


@pytest.hookimpl(trylast=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize ``llm`` and ``engine`` unless the test does so itself."""
    given = metafunc.config.stash.get(runner.OPTIONS, None)
    models = {"llm": given.specs, "engine": given.served} if given else {}
    for name, specs in models.items():
        calls = metafunc._calls  # noqa: SLF001  # pytest has no public API for the parameters that a test has
        if name in _own_fixtures(metafunc.definition) and not any(name in call.params for call in calls):
            from pytest_llmperf.runner.perf_test import test_key

            metafunc.config.stash[runner.COLLECTED].by_options.add(test_key(metafunc.definition))
            metafunc.parametrize(name, specs, indirect=True)


def pytest_make_parametrize_id(val: object) -> str | None:
    """Give model specs stable ids, because baselines contain them."""
    if type(val).__name__ != "ModelSpec":  # pytest calls this for every parameter of every project
        return None
    from pytest_llmperf.models.spec import ModelSpec

    return str(val) if isinstance(val, ModelSpec) else None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Select the perf tests, or without ``--llmperf`` the other tests; group perf tests by model."""
    active = runner.OPTIONS in config.stash
    kept: list[pytest.Item] = []
    dropped: list[pytest.Item] = []
    with _as_usage_errors():
        for item in items:
            _check_marker(item)
            (kept if _belongs(item, active=active) else dropped).append(item)
    if dropped:
        config.hook.pytest_deselected(items=dropped)
    items[:] = kept
    if active:
        from pytest_llmperf.runner.startup import prepare

        with _as_usage_errors():
            prepare(config, items)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Record missing tests and environment differences, after all plugins have deselected tests."""
    if runner.WORKPLACE in session.config.stash:
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
    if runner.WORKPLACE in item.config.stash:
        from pytest_llmperf.runner.judging import judge
        from pytest_llmperf.runner.once import remember

        if call.when == "call" or (call.when == "setup" and report.failed):
            judge(item, report)
        remember(item, report)
    return report


@pytest.fixture(scope="session")
def llm(request: pytest.FixtureRequest) -> LoadedModel:
    """A loaded model; parametrize it indirectly with a quantization name or a ``ModelSpec``.

    One model is in memory at a time, and each is loaded once per run.
    """
    return _got(partial(request.config.stash[runner.WORKPLACE].load, request.param))


@pytest.fixture(scope="session")
def engine(request: pytest.FixtureRequest) -> Engine:
    """An engine that serves requests, chosen with ``--llmperf-engine``.

    The transformers engine is parametrized like ``llm`` and shares its models. Other engines serve the one model they
    have.
    """
    return _got(partial(request.config.stash[runner.WORKPLACE].engine, request.param))


@pytest.fixture
def llmperf(request: pytest.FixtureRequest) -> LlmPerf:
    """Measure and record a workload: ``llmperf.generate(llm, batch_size=8)``."""
    from pytest_llmperf.runner.fixtures import LlmPerf
    from pytest_llmperf.runner.perf_test import settings_of, test_key

    item, workplace = request.node, request.config.stash[runner.WORKPLACE]
    if not {*runner.MODEL_FIXTURES} & {*request.fixturenames}:  # a model that the test builds itself is alone in memory
        workplace.release_loaded()
    fixture = LlmPerf(workplace, test_key(item), settings_of(item))
    item.stash[runner.FIXTURE] = fixture
    return fixture


@pytest.fixture
def cuda_timer(request: pytest.FixtureRequest) -> KernelTimer:
    """Time a callable without a model: ``timing = cuda_timer(fn, *args)``, then ``timing.median_ms``."""  # noqa: D402  # an example
    from pytest_llmperf.runner.fixtures import CallRecorder
    from pytest_llmperf.runner.perf_test import test_key

    workplace = request.config.stash[runner.WORKPLACE]
    request.node.stash[runner.TIMER] = recorder = CallRecorder(workplace, test_key(request.node))
    return workplace.timer(recorder.keep)


@pytest.fixture
def peak_memory(request: pytest.FixtureRequest) -> Callable[[], AbstractContextManager[PeakMemory]]:
    """Peak memory of a block: ``with peak_memory() as peak: ...``, then ``peak.allocated_bytes``."""  # noqa: D402  # an example
    from pytest_llmperf.runner.fixtures import peak_memory as follow

    workplace = request.config.stash[runner.WORKPLACE]
    workplace.refuse_without_device("peak_memory")
    return partial(follow, workplace.device)


def _got(get: Callable[[], _Got]) -> _Got:
    """Return what ``get`` returns; its errors fail the test in one line, and ``Unavailable`` skips it."""
    from pytest_llmperf.errors import LlmperfError, Unavailable

    try:
        return get()
    except Unavailable:
        raise
    except LlmperfError as error:
        raise pytest.fail.Exception(str(error), pytrace=False) from None  # a chained traceback would add lines


class _as_usage_errors:  # noqa: N801  # reads as a phrase where it is used
    """Turn the package's errors into pytest's, which end collection in one line with exit code 4."""

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is None:
            return
        from pytest_llmperf.errors import LlmperfError

        if isinstance(error, LlmperfError):
            raise pytest.UsageError(str(error)) from error


class _skipping_unavailable:  # noqa: N801  # reads as a phrase where it is used
    """Skip a test that needs something unavailable here, with the reason."""

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is None:
            return
        from pytest_llmperf.errors import Unavailable

        if isinstance(error, Unavailable):
            pytest.skip(str(error))


def _alone(item: pytest.Item, phase: str) -> AbstractContextManager[None]:
    if runner.WORKPLACE not in item.config.stash:
        return nullcontext()
    from pytest_llmperf.runner.once import only_once

    return only_once(item, phase)


@contextmanager
def _contained(item: pytest.Item, phase: str) -> Iterator[None]:
    """Contain errors in a phase of a perf test; if the device died, stop the session."""
    workplace = item.config.stash.get(runner.WORKPLACE, None)
    if workplace is None:
        yield
        return
    from pytest_llmperf.runner.perf_test import test_key

    try:
        with workplace.contained(test_key(item), phase):
            yield
    finally:
        if workplace.dead:
            item.session.shouldfail = f"{workplace.device} died"


def _check_marker(item: pytest.Item) -> None:
    """Check the marker. Runs that leave out perf tests check it too."""
    if item.get_closest_marker("llmperf"):
        from pytest_llmperf.runner.perf_test import settings_of

        settings_of(item)


def _belongs(item: pytest.Item, *, active: bool) -> bool:
    """Whether a run keeps an item: the perf tests that it measures, or without ``--llmperf`` the other tests."""
    if not active or not _is_perf(item):
        return _is_perf(item) is active
    from pytest_llmperf.runner.perf_test import is_wanted

    return is_wanted(item)


def _is_perf(item: pytest.Item) -> bool:
    return bool(_own_fixtures(item)) or item.get_closest_marker("llmperf") is not None


def _own_fixtures(item: pytest.Item) -> set[str]:
    """Return our fixtures that a test uses. A project's own ``engine`` fixture makes no perf test."""
    known = getattr(item, "_fixtureinfo", None)  # pytest has no public API for a fixture's origin
    found = known.name2fixturedefs if known else {}
    return {name for name in PERF_FIXTURES if name in found and found[name][-1].func.__module__ == __name__}
