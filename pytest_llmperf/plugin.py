"""pytest plugin: command-line options, marker, hooks and fixtures.

Every pytest run of every project that has this package installed imports this module, so it imports nothing heavy:
torch, transformers, pandas, scipy, rich and pydantic are imported only before perf tests run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from pytest_llmperf.errors import LlmperfError, Unavailable, UsageError
from pytest_llmperf.runner.options import add_options, forgotten_flag, take_device_option

if TYPE_CHECKING:
    from pytest_llmperf.engines.engine import Engine
    from pytest_llmperf.hardware.memory import PeakMemory
    from pytest_llmperf.measure.kernel import KernelTimer
    from pytest_llmperf.models.load import LoadedModel
    from pytest_llmperf.models.spec import ModelSpec
    from pytest_llmperf.runner.collection import Collection
    from pytest_llmperf.runner.config import Options, TestSettings
    from pytest_llmperf.runner.context import PlannedTest, Workplace
    from pytest_llmperf.runner.fixtures import CallRecorder, LlmPerf
    from pytest_llmperf.runner.session import Session
    from pytest_llmperf.verdict.outcome import Entry

MODEL_FIXTURES = ("llm", "engine")
"""Fixtures that take a model as their parameter."""
PERF_FIXTURES = frozenset({*MODEL_FIXTURES, "llmperf", "cuda_timer", "peak_memory"})
MARKER = (
    "llmperf(*, gate=None, tolerate=None, catch=None, requests=None, warmup=None, timeout=None): a perf test, run with "
    "--llmperf. gate: metrics that may fail it; tolerate: accepted slowdown; catch: slowdown to detect; requests, "
    "warmup: numbers of requests; timeout: time limit in seconds"
)

_Got = TypeVar("_Got")

OPTIONS: pytest.StashKey[Options] = pytest.StashKey()
SESSION: pytest.StashKey[Session] = pytest.StashKey()
WORKPLACE: pytest.StashKey[Workplace] = pytest.StashKey()
MODELS: pytest.StashKey[dict[str, str]] = pytest.StashKey()
"""The model of each test that runs, as the ``repr`` of its spec, by node id."""
FIXTURE: pytest.StashKey[LlmPerf] = pytest.StashKey()
TIMER: pytest.StashKey[CallRecorder] = pytest.StashKey()
COLLECTED: pytest.StashKey[Collection] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options."""
    add_options(parser)


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests(
    early_config: pytest.Config, parser: pytest.Parser, args: list[str]
) -> Generator[None, object, object]:
    """Take ``--device`` unless another plugin or a conftest has declared it."""
    result = yield
    with _as_usage_errors():
        take_device_option(early_config, parser, args)
    return result


def pytest_configure(config: pytest.Config) -> None:
    """Resolve the options, and reject at once those that cannot work."""
    config.addinivalue_line("markers", MARKER)
    with _as_usage_errors():
        if config.getoption("llmperf"):
            _start_session(config)
        elif forgotten := forgotten_flag(config):
            raise UsageError(f"{forgotten} needs --llmperf, which runs the perf tests")


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Show the device and the baselines of a perf run, and which options of other plugins it ignores."""
    options = config.stash.get(OPTIONS, None)
    if options is None:
        return []
    from pytest_llmperf.runner.once import ignored_options

    injected = f", INJECTED {', '.join(map(str, options.injections))}" if options.injections else ""
    lines = [f"llmperf: device {options.device}, baselines in {options.baselines}{injected}"]
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
    options = metafunc.config.stash.get(OPTIONS, None)
    models = {"llm": options.specs, "engine": options.served} if options else {}
    for name, given in models.items():
        if name in _own_fixtures(metafunc.definition) and not _is_parametrized(metafunc, name):
            metafunc.config.stash[COLLECTED].by_options.add(test_key(metafunc.definition))
            metafunc.parametrize(name, given, indirect=True)


def pytest_make_parametrize_id(val: object) -> str | None:
    """Give model specs stable ids, because baselines contain them."""
    if type(val).__name__ != "ModelSpec":  # pytest calls this for every parameter of every project
        return None
    from pytest_llmperf.models.spec import ModelSpec

    return str(val) if isinstance(val, ModelSpec) else None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Select the perf tests, or without ``--llmperf`` the other tests; group perf tests by model."""
    active = OPTIONS in config.stash
    kept: list[pytest.Item] = []
    dropped: list[pytest.Item] = []
    with _as_usage_errors():
        for item in items:
            _check_marker(item)
            (kept if _is_perf(item) is active and _is_wanted(item) else dropped).append(item)
    if dropped:
        config.hook.pytest_deselected(items=dropped)
    items[:] = _one_model_after_another(kept) if active else kept
    if active and not config.option.collectonly and (kept or _may_miss_tests(config)):
        _open_workplace(config, items)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Record missing tests and environment differences, after all plugins have deselected tests."""
    if WORKPLACE in session.config.stash:
        _tell_found(session.config, session.items)


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
        from pytest_llmperf.runner.once import remember

        if call.when == "call" or (call.when == "setup" and report.failed):
            _judge(item, report)
        remember(item, report)
    return report


class Collector:
    """Collects the results of each test; registered on the controller of an active run."""

    def __init__(self, config: pytest.Config, session: Session) -> None:
        self._config = config
        self._session = session

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Collect a report's entry first, because another plugin's hook may raise."""
        from pytest_llmperf.verdict.outcome import entry_of

        if (entry := entry_of(report)) and self._session.collect(entry):
            _explain(report, entry, self._config)


@pytest.fixture(scope="session")
def llm(request: pytest.FixtureRequest) -> LoadedModel:
    """A loaded model; parametrize it indirectly with a quantization name or a ``ModelSpec``.

    One model is in memory at a time, and each is loaded once per run.
    """
    return _got(partial(request.config.stash[WORKPLACE].load, request.param))


@pytest.fixture(scope="session")
def engine(request: pytest.FixtureRequest) -> Engine:
    """An engine that serves requests, chosen with ``--llmperf-engine``.

    The transformers engine is parametrized like ``llm`` and shares its models. Other engines serve the one model they
    have.
    """
    return _got(partial(request.config.stash[WORKPLACE].engine, request.param))


@pytest.fixture
def llmperf(request: pytest.FixtureRequest) -> LlmPerf:
    """Measure and record a workload: ``llmperf.generate(llm, batch_size=8)``."""
    from pytest_llmperf.runner.fixtures import LlmPerf

    item, workplace = request.node, request.config.stash[WORKPLACE]
    if not {*MODEL_FIXTURES} & {*request.fixturenames}:  # a model that the test builds itself is alone in memory
        workplace.release_loaded()
    fixture = LlmPerf(workplace, test_key(item), _settings(item))
    item.stash[FIXTURE] = fixture
    return fixture


@pytest.fixture
def cuda_timer(request: pytest.FixtureRequest) -> KernelTimer:
    """Time a callable without a model: ``timing = cuda_timer(fn, *args)``, then ``timing.median_ms``."""  # noqa: D402  # an example
    from pytest_llmperf.runner.fixtures import CallRecorder

    workplace = request.config.stash[WORKPLACE]
    request.node.stash[TIMER] = recorder = CallRecorder(workplace, test_key(request.node))
    return workplace.timer(recorder.keep)


@pytest.fixture
def peak_memory(request: pytest.FixtureRequest) -> Callable[[], AbstractContextManager[PeakMemory]]:
    """Peak memory of a block: ``with peak_memory() as peak: ...``, then ``peak.allocated_bytes``."""  # noqa: D402  # an example
    from pytest_llmperf.runner.fixtures import peak_memory as follow

    workplace = request.config.stash[WORKPLACE]
    workplace.refuse_without_device("peak_memory")
    return partial(follow, workplace.device)


def test_key(item: pytest.Item) -> str:
    """Return a test's name in baselines: its node id, with the module's name for tests of the ready-made suite.

    The suite's tests are the same wherever the package is installed, so their names must not contain its path.
    """
    from pytest_llmperf.runner.once import unrepeated

    package, nodeid = Path(__file__).parent, unrepeated(item)
    if item.path.is_relative_to(package):
        module = ".".join((package.name, *item.path.relative_to(package).with_suffix("").parts))
        return f"{module}::{nodeid.partition('::')[2]}"
    return nodeid


test_key.__test__ = False  # type: ignore[attr-defined]  # pytest would collect a function of this name


def _got(get: Callable[[], _Got]) -> _Got:
    """Return what ``get`` returns; its errors fail the test in one line, and ``Unavailable`` skips it."""
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
        if isinstance(error, LlmperfError):
            raise pytest.UsageError(str(error)) from error


class _skipping_unavailable:  # noqa: N801  # reads as a phrase where it is used
    """Skip a test that needs something unavailable here, with the reason."""

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, Unavailable):
            pytest.skip(str(error))


def _start_session(config: pytest.Config) -> None:
    from pytest_llmperf.hardware.device import check_device_name, require_models_extra, worker_devices
    from pytest_llmperf.runner.collection import Collection
    from pytest_llmperf.runner.config import Options, baselines_arguments, measuring_arguments
    from pytest_llmperf.runner.session import Session, refuse_early
    from pytest_llmperf.storage.provenance import reporter_of
    from pytest_llmperf.system.run_processes import begin_run
    from pytest_llmperf.verdict.outcome import RunOutcome

    begin_run()
    config.stash[OPTIONS] = options = Options.from_config(config)
    config.stash[COLLECTED] = collected = Collection(config, lambda item: test_key(item) if _is_perf(item) else None)
    config.pluginmanager.register(collected, "llmperf-collection")
    _disable_codspeed(config)
    check_device_name(options.device)
    require_models_extra()
    workers = _workers(config)
    devices = worker_devices(options.device) if workers else []
    refuse_early(options, environ=os.environ, workers=workers, devices=devices)
    if hasattr(config, "workerinput"):
        from pytest_llmperf.runner.xdist import Worker

        config.pluginmanager.register(Worker(config), "llmperf-worker")
        _register_ending(config, None)
        return
    outcome = RunOutcome(
        compared=not options.measure_only,
        counted=options.counted,
        fail_on=options.fail_on,
        place=baselines_arguments(config, options.baselines),
        settings=measuring_arguments(config),
    )
    session = Session(options, config.rootpath, outcome)
    config.stash[SESSION] = session
    if options.journal and (reporter := reporter_of(options.journal, collected.tests)):
        config.pluginmanager.register(reporter, "llmperf-imports")
    config.pluginmanager.register(Collector(config, session), "llmperf-collector")
    _feed_pytest_benchmark(config, options)
    if workers:
        from pytest_llmperf.runner.xdist import Controller

        config.pluginmanager.register(Controller(devices[:workers], outcome), "llmperf-controller")
    _register_ending(config, session)


def _register_ending(config: pytest.Config, running: Session | None) -> None:
    from pytest_llmperf.runner.ending import Ending

    ending = Ending(config, running, lambda: config.stash.get(WORKPLACE, None))
    config.pluginmanager.register(ending, "llmperf-ending")


def _feed_pytest_benchmark(config: pytest.Config, options: Options) -> None:
    """Feed pytest-benchmark, unless a journal is requested: the process that reads the journal feeds it."""
    if options.journal or not _has_pytest_benchmark(config):
        return
    from pytest_llmperf.runner.pytest_benchmark import Bridge, is_wanted

    if is_wanted(config):
        config.pluginmanager.register(Bridge(config), "llmperf-benchmark")


def _has_pytest_benchmark(config: pytest.Config) -> bool:
    """Whether pytest-benchmark is loaded: other plugins share its option names, and pytest-codspeed blocks it."""
    found = config.pluginmanager
    names = {getattr(plugin, "__name__", "") for plugin in found.get_plugins()}
    return "pytest_benchmark.plugin" in names and not found.is_blocked("pytest-benchmark")


def _disable_codspeed(config: pytest.Config) -> None:
    """Disable pytest-codspeed: it instruments tests, and deselects those without its fixtures, such as perf tests."""
    codspeed = config.pluginmanager.get_plugin("codspeed_plugin")
    if codspeed and hasattr(codspeed, "is_codspeed_enabled"):
        codspeed.is_codspeed_enabled = False


def _workers(config: pytest.Config) -> int:
    """Return how many xdist workers this process will start."""
    if config.option.collectonly or config.getoption("dist", "no") == "no" or not config.getoption("tx"):
        return 0
    from xdist import workermanage

    specs = getattr(workermanage, "parse_tx_spec_config", None) or workermanage.parse_spec_config  # before xdist 3.7
    return len(specs(config))


def _open_workplace(config: pytest.Config, items: list[pytest.Item]) -> None:
    from pytest_llmperf.runner.config import measuring_arguments
    from pytest_llmperf.runner.context import Workplace

    planned = {item.nodeid: _planned(item) for item in items}
    with _as_usage_errors():
        config.stash[WORKPLACE] = workplace = Workplace(
            config.stash[OPTIONS],
            list(planned.values()),
            root=config.rootpath,
            settings=measuring_arguments(config),
        )
    config.stash[MODELS] = {name: repr(test.spec) for name, test in planned.items()}
    _choose_runner(config, workplace, planned)
    _show_progress(config, workplace)


def _tell_found(config: pytest.Config, items: Sequence[pytest.Item]) -> None:
    workplace = config.stash[WORKPLACE]
    found = {
        "device_key": workplace.device_key,
        "edited": workplace.edited,
        "missing": _missing(config, items),
        "differences": [str(difference) for difference in workplace.comparison.all_differences()],
    }
    if session := config.stash.get(SESSION, None):
        session.outcome.take(found)
    else:
        from pytest_llmperf.runner.xdist import tell_controller

        tell_controller(config, found | {"models": config.stash[MODELS]})


def _show_progress(config: pytest.Config, workplace: Workplace) -> None:
    from pytest_llmperf.runner.live_line import LiveLine

    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if LiveLine.fits(reporter):
        capture = config.pluginmanager.get_plugin("capturemanager")
        uncaptured = capture.global_and_fixture_disabled if capture else nullcontext
        workplace.progress.watchers.append(LiveLine(reporter, uncaptured))


def _choose_runner(config: pytest.Config, workplace: Workplace, planned: Mapping[str, PlannedTest]) -> None:
    """Register the plugins that run tests instead of pytest, or that report to a parent process, if requested."""
    from pytest_llmperf.runner.once import Protocol

    options, register = workplace.options, config.pluginmanager.register
    run = None
    if options.tell:
        from pytest_llmperf.runner.ipc import Teller

        teller = Teller(config, options.tell)
        workplace.progress.listener = teller.tell_moment
        register(teller, "llmperf-teller")
    if options.isolate:
        from pytest_llmperf.runner.isolate import Isolator

        run = Isolator(config, workplace, planned).run
    if options.confirms:
        from pytest_llmperf.runner.confirm import Confirmer

        register(Confirmer(config, workplace, config.stash.get(SESSION, None), run), "llmperf-protocol")
    else:
        register(Protocol(run), "llmperf-protocol")


def _may_miss_tests(config: pytest.Config) -> bool:
    """Whether a run without perf tests must look for missing ones; if not, nothing heavy is imported."""
    return any(config.stash[OPTIONS].baselines.glob("*.json")) and not config.stash[COLLECTED].is_narrowed(())


def _missing(config: pytest.Config, items: Sequence[pytest.Item]) -> list[str]:
    """Return the baseline's tests that no longer exist."""
    workplace, collected = config.stash[WORKPLACE], config.stash[COLLECTED]
    if workplace.options.only or collected.is_narrowed(map(test_key, items)):
        return []
    return workplace.comparison.missing(collected.tests, collected.would_find)


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


def _planned(item: pytest.Item) -> PlannedTest:
    from pytest_llmperf.runner.context import PlannedTest

    return PlannedTest(test_key(item), _settings(item), _spec(item))


def _alone(item: pytest.Item, phase: str) -> AbstractContextManager[None]:
    if WORKPLACE not in item.config.stash:
        return nullcontext()
    from pytest_llmperf.runner.once import only_once

    return only_once(item, phase)


@contextmanager
def _contained(item: pytest.Item, phase: str) -> Iterator[None]:
    """Contain errors in a phase of a perf test; if the device died, stop the session."""
    workplace = item.config.stash.get(WORKPLACE, None)
    try:
        with workplace.contained(test_key(item), phase) if workplace else nullcontext():
            yield
    finally:
        if workplace and workplace.dead:
            item.session.shouldfail = f"{workplace.device} died"


def _judge(item: pytest.Item, report: pytest.TestReport) -> None:
    from pytest_llmperf.runner.once import execution_of
    from pytest_llmperf.verdict.outcome import settle

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
    from pytest_llmperf.verdict.outcome import XPASS_STRICT

    if report.passed or report.longreprtext.startswith(XPASS_STRICT):
        return ""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash else report.longreprtext
    return next(iter(text.strip().splitlines()), "failed").removeprefix("pytest_llmperf.errors.")


def _check_marker(item: pytest.Item) -> None:
    """Check the marker. Runs that leave out perf tests check it too."""
    if item.get_closest_marker("llmperf"):
        _settings(item)


def _settings(item: pytest.Item) -> TestSettings:
    from pytest_llmperf.runner.config import TestSettings

    try:
        return TestSettings.from_markers(list(item.iter_markers("llmperf")))
    except UsageError as error:
        raise UsageError(f"{item.nodeid}: {error}") from error


def _is_perf(item: pytest.Item) -> bool:
    return bool(_own_fixtures(item)) or item.get_closest_marker("llmperf") is not None


def _own_fixtures(item: pytest.Item) -> set[str]:
    """Return our fixtures that a test uses. A project's own ``engine`` fixture makes no perf test."""
    known = getattr(item, "_fixtureinfo", None)  # pytest has no public API for a fixture's origin
    found = known.name2fixturedefs if known else {}
    return {name for name in PERF_FIXTURES if name in found and found[name][-1].func.__module__ == __name__}


def _is_wanted(item: pytest.Item) -> bool:
    options = item.config.stash.get(OPTIONS, None)
    if options is None:
        return True
    from pytest_llmperf.runner.once import is_repetition

    return not is_repetition(item) and (not options.only or test_key(item) in options.only)


def _is_parametrized(metafunc: pytest.Metafunc, name: str) -> bool:
    return any(name in call.params for call in metafunc._calls)  # noqa: SLF001  # pytest has no public API for it


def _model_param(item: pytest.Item) -> Any:
    """Return the parameter that names a test's model; ``None`` if no model is loaded for it."""
    callspec = getattr(item, "callspec", None)
    loaded = MODEL_FIXTURES if item.config.stash[OPTIONS].loads_models else ("llm",)
    return next((callspec.params[name] for name in loaded if name in callspec.params), None) if callspec else None


def _one_model_after_another(items: list[pytest.Item]) -> list[pytest.Item]:
    """Sort tests by the first appearance of their model, so that no model is loaded twice. The sort is stable.

    pytest also groups tests by parameter, but before 9.2 by the parameter's index, so each module loaded the models
    again.
    """
    order: dict[object, int] = {}
    with _as_usage_errors():
        for item in items:
            order.setdefault(_spec(item), len(order))
    return sorted(items, key=lambda item: order[_spec(item)])


def _spec(item: pytest.Item) -> ModelSpec | None:
    from pytest_llmperf.models.spec import ModelSpec

    param = _model_param(item)
    if param is None:
        return None
    try:
        return ModelSpec.parse(param)
    except UsageError as error:
        raise UsageError(f"{item.nodeid}: {error}") from error
