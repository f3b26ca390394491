"""The pytest plugin: options, markers, hooks and fixtures. Declarations and short bodies; nothing heavy is imported.

Every pytest run of every project that has this package installed imports this module, so torch, transformers, pandas,
scipy, rich and pydantic wait until a perf test is to be run.
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
from pytest_llmperf.runner.collection import Collection
from pytest_llmperf.runner.once import (
    Protocol,
    execution_of,
    ignored_options,
    is_repetition,
    only_once,
    remember,
    unrepeated,
)
from pytest_llmperf.runner.options import add_options, forgotten_flag, take_device_option

if TYPE_CHECKING:
    from pytest_llmperf.engines.engine import Engine
    from pytest_llmperf.measure.kernel import KernelTimer
    from pytest_llmperf.models.load import LoadedModel
    from pytest_llmperf.models.spec import ModelSpec
    from pytest_llmperf.runner.config import Options, TestSettings
    from pytest_llmperf.runner.context import PlannedTest, Workplace
    from pytest_llmperf.runner.fixtures import CallRecorder, LlmPerf, PeakMemory
    from pytest_llmperf.runner.session import Session
    from pytest_llmperf.verdict.outcome import Entry

MODEL_FIXTURES = ("llm", "engine")
"""Those that take a model as their parameter."""
PERF_FIXTURES = frozenset({*MODEL_FIXTURES, "llmperf", "cuda_timer", "peak_memory"})
MARKER = (
    "llmperf(*, gate=None, tolerate=None, catch=None, requests=None, warmup=None, timeout=None): a perf test, which "
    "--llmperf runs: what may fail it, how much it accepts and must catch, how often it measures, how long it may take"
)

_Got = TypeVar("_Got")

OPTIONS: pytest.StashKey[Options] = pytest.StashKey()
SESSION: pytest.StashKey[Session] = pytest.StashKey()
WORKPLACE: pytest.StashKey[Workplace] = pytest.StashKey()
MODELS: pytest.StashKey[dict[str, str]] = pytest.StashKey()
"""What tells apart the models of the tests that run, by node id."""
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
    """Take ``--device`` where nobody else has claimed it by then."""
    result = yield
    with _as_usage_errors():
        take_device_option(early_config, parser, args)
    return result


def pytest_configure(config: pytest.Config) -> None:
    """Resolve the options, and refuse at once what cannot work."""
    config.addinivalue_line("markers", MARKER)
    with _as_usage_errors():
        if config.getoption("llmperf"):
            _start_session(config)
        elif forgotten := forgotten_flag(config):
            raise UsageError(f"{forgotten} needs --llmperf, which turns the perf tests on")


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say what a perf run will do, and which options of others it does not follow."""
    options = config.stash.get(OPTIONS, None)
    if options is None:
        return []
    injected = f", INJECTED {', '.join(map(str, options.injections))}" if options.injections else ""
    lines = [f"llmperf: device {options.device}, baselines in {options.baselines}{injected}"]
    if ignored := ignored_options(config):
        lines.append(f"llmperf: each perf test runs once, in this process: ignored {', '.join(ignored)}")
    return lines


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """``-n auto`` is a worker for each device."""
    if not config.getoption("llmperf"):
        return None
    from pytest_llmperf.hardware.device import worker_devices
    from pytest_llmperf.runner.config import given_device

    with _as_usage_errors():
        return len(worker_devices(given_device(config)))


@pytest.hookimpl(trylast=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize ``llm`` and ``engine`` where a test does not do so itself."""
    options = metafunc.config.stash.get(OPTIONS, None)
    models = {"llm": options.specs, "engine": options.served} if options else {}
    for name, given in models.items():
        if name in _own_fixtures(metafunc.definition) and not _is_parametrized(metafunc, name):
            metafunc.config.stash[COLLECTED].by_options.add(test_key(metafunc.definition))
            metafunc.parametrize(name, given, indirect=True)


def pytest_make_parametrize_id(val: object) -> str | None:
    """Give model specs ids that baselines can depend on."""
    if type(val).__name__ != "ModelSpec":  # every parameter of every project comes by here
        return None
    from pytest_llmperf.models.spec import ModelSpec

    return str(val) if isinstance(val, ModelSpec) else None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the perf tests or the others, and bring those of one model together."""
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
    """Tell what is known of the baseline, now that nobody deselects tests any more."""
    if WORKPLACE in session.config.stash:
        _tell_found(session.config, session.items)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    """Contain what goes wrong while a model is loaded."""
    with _skipping_unavailable(), _alone(item, "setup"), _contained(item, "setup"):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Contain what goes wrong in a perf test."""
    with _skipping_unavailable(), _alone(item, "call"), _contained(item, "test body"):
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Call a perf test's function once, also where another plugin runs the item itself again."""
    with _alone(pyfuncitem, "function"):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Judge a perf test when it ends, and fail its own report."""
    report = yield
    if WORKPLACE in item.config.stash:
        if call.when == "call" or (call.when == "setup" and report.failed):
            _judge(item, report)
        remember(item, report)
    return report


class Collector:
    """Registered on the controller of an active run: takes in what became of each test."""

    def __init__(self, config: pytest.Config, session: Session) -> None:
        self._config = config
        self._session = session

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take in the entry that a report carries, before another plugin's hook may raise."""
        from pytest_llmperf.verdict.outcome import entry_of

        if (entry := entry_of(report)) and self._session.collect(entry):
            _explain(report, entry, self._config)


@pytest.fixture(scope="session")
def llm(request: pytest.FixtureRequest) -> LoadedModel:
    """A loaded model: parametrize it indirectly by a quantization name or a ``ModelSpec``.

    One model is loaded at a time, and each once a run.
    """
    return _got(partial(request.config.stash[WORKPLACE].load, request.param))


@pytest.fixture(scope="session")
def engine(request: pytest.FixtureRequest) -> Engine:
    """What serves requests, chosen with ``--llmperf-engine``.

    Over transformers it is parametrized as ``llm`` is, and shares its models; an engine with a model of its own is one.
    """
    return _got(partial(request.config.stash[WORKPLACE].engine, request.param))


@pytest.fixture
def llmperf(request: pytest.FixtureRequest) -> LlmPerf:
    """Measures and records: ``llmperf.generate(llm, batch_size=8)``."""
    from pytest_llmperf.runner.fixtures import LlmPerf

    item = request.node
    fixture = LlmPerf(request.config.stash[WORKPLACE], test_key(item), _settings(item))
    item.stash[FIXTURE] = fixture
    return fixture


@pytest.fixture
def cuda_timer(request: pytest.FixtureRequest) -> KernelTimer:
    """Times a callable, with no model: ``timing = cuda_timer(fn, *args)``, then ``timing.median_ms``."""  # noqa: D402  # an example
    from pytest_llmperf.runner.fixtures import CallRecorder

    workplace = request.config.stash[WORKPLACE]
    request.node.stash[TIMER] = recorder = CallRecorder(workplace, test_key(request.node))
    return workplace.timer(recorder.keep)


@pytest.fixture
def peak_memory(request: pytest.FixtureRequest) -> Callable[[], AbstractContextManager[PeakMemory]]:
    """Memory of a block: ``with peak_memory() as peak: ...``, then ``peak.allocated_bytes``."""  # noqa: D402  # an example
    from pytest_llmperf.runner.fixtures import peak_memory as follow

    return partial(follow, request.config.stash[WORKPLACE].device)


def test_key(item: pytest.Item) -> str:
    """The name of a test in a baseline: its node id, with the module's name for tests of the ready-made suite.

    The suite lies wherever the package is installed, and is the same tests everywhere.
    """
    package, nodeid = Path(__file__).parent, unrepeated(item)
    if item.path.is_relative_to(package):
        module = ".".join((package.name, *item.path.relative_to(package).with_suffix("").parts))
        return f"{module}::{nodeid.partition('::')[2]}"
    return nodeid


test_key.__test__ = False  # type: ignore[attr-defined]  # pytest would collect a function of this name


def _got(get: Callable[[], _Got]) -> _Got:
    """What a test needs; it fails in one line without it, and is skipped where it cannot be had here."""
    try:
        return get()
    except Unavailable:
        raise
    except LlmperfError as error:
        raise pytest.fail.Exception(str(error), pytrace=False) from None  # what led to it would be lines above the one


class _as_usage_errors:  # noqa: N801  # reads as a phrase where it is used
    """Turn the package's own errors into pytest's, which end collection in one line with exit code 4."""

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, LlmperfError):
            raise pytest.UsageError(str(error)) from error


class _skipping_unavailable:  # noqa: N801  # reads as a phrase where it is used
    """Skip a test that asks for what cannot run here, with the reason."""

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, Unavailable):
            pytest.skip(str(error))


def _start_session(config: pytest.Config) -> None:
    from pytest_llmperf.hardware.device import check_device_name, require_models_extra, worker_devices
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
    """Not from a process that measures for another one, which tells what it found there."""
    if options.journal or not _has_pytest_benchmark(config):
        return
    from pytest_llmperf.runner.pytest_benchmark import Bridge, is_wanted

    if is_wanted(config):
        config.pluginmanager.register(Bridge(config), "llmperf-benchmark")


def _has_pytest_benchmark(config: pytest.Config) -> bool:
    """Whether it is loaded: other plugins have options of the same names, and pytest-codspeed blocks it."""
    found = config.pluginmanager
    names = {getattr(plugin, "__name__", "") for plugin in found.get_plugins()}
    return "pytest_benchmark.plugin" in names and not found.is_blocked("pytest-benchmark")


def _disable_codspeed(config: pytest.Config) -> None:
    """It would instrument tests, and deselect those that have none of its fixtures, as perf tests do not."""
    codspeed = config.pluginmanager.get_plugin("codspeed_plugin")
    if codspeed and hasattr(codspeed, "is_codspeed_enabled"):
        codspeed.is_codspeed_enabled = False


def _workers(config: pytest.Config) -> int:
    """How many xdist workers this process will start."""
    if config.option.collectonly or config.getoption("dist", "no") == "no" or not config.getoption("tx"):
        return 0
    from xdist import workermanage

    specs = getattr(workermanage, "parse_tx_spec_config", None) or workermanage.parse_spec_config  # before xdist 3.7
    return len(specs(config))


def _open_workplace(config: pytest.Config, items: list[pytest.Item]) -> None:
    from pytest_llmperf.runner.context import Workplace

    planned = {item.nodeid: _planned(item) for item in items}
    with _as_usage_errors():
        config.stash[WORKPLACE] = workplace = Workplace(
            config.stash[OPTIONS], list(planned.values()), root=config.rootpath
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
    """Register what runs the tests in pytest's stead, or tells of them, where that is asked for."""
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
    """Whether a run without perf tests has a baseline to ask; if not, nothing heavy is imported."""
    return any(config.stash[OPTIONS].baselines.glob("*.json")) and not config.stash[COLLECTED].is_narrowed(())


def _missing(config: pytest.Config, items: Sequence[pytest.Item]) -> list[str]:
    """Tests of the baseline that are gone."""
    workplace, collected = config.stash[WORKPLACE], config.stash[COLLECTED]
    if workplace.options.only or collected.is_narrowed(map(test_key, items)):
        return []
    return workplace.comparison.missing(collected.tests, collected.would_find)


def _explain(report: pytest.TestReport, entry: Entry, config: pytest.Config) -> None:
    """A section of a failed test: pytest shows it below what failed."""
    if not entry.explanations:
        return
    from pytest_llmperf.report.explanation_text import explanation_text, explanation_title
    from pytest_llmperf.report.text_table import PIPE_COLUMNS

    reporter = config.pluginmanager.get_plugin("terminalreporter")
    width = reporter._tw.fullwidth if reporter else PIPE_COLUMNS  # noqa: SLF001  # pytest offers no other way
    for one in entry.explanations:
        report.sections.append((f"llmperf: {explanation_title(one)}", explanation_text(one, width)))


def _planned(item: pytest.Item) -> PlannedTest:
    from pytest_llmperf.runner.context import PlannedTest

    return PlannedTest(test_key(item), _settings(item), _spec(item))


def _alone(item: pytest.Item, phase: str) -> AbstractContextManager[None]:
    return only_once(item, phase) if WORKPLACE in item.config.stash else nullcontext()


@contextmanager
def _contained(item: pytest.Item, phase: str) -> Iterator[None]:
    """Contain what goes wrong in a stage of a perf test; where the device died, no other test is tried."""
    workplace = item.config.stash.get(WORKPLACE, None)
    try:
        with workplace.contained(test_key(item), phase) if workplace else nullcontext():
            yield
    finally:
        if workplace and workplace.dead:
            item.session.shouldfail = f"{workplace.device} is dead"


def _judge(item: pytest.Item, report: pytest.TestReport) -> None:
    from pytest_llmperf.verdict.outcome import settle

    known = execution_of(item)
    if report.skipped or known.judged:
        return
    known.judged = True
    workplace, fixture = item.config.stash[WORKPLACE], item.stash.get(FIXTURE, None)
    results, timed = fixture.results if fixture else [], item.stash.get(TIMER, None)
    # Where a model was to be measured and was not, a timing beside it does not make up for that.
    if timed and (results or not fixture):
        results = [*results, *timed.results]
    entry = workplace.entry(test_key(item), results, timings=timed.lines if timed else (), error=_error_line(report))
    # Of both: JUnit's file takes those of the teardown's report, which pytest fills from the item.
    report.user_properties += entry.figures
    item.user_properties += entry.figures
    settle(report, entry, confirm=workplace.options.confirms)


def _error_line(report: pytest.TestReport) -> str:
    """The first line of what a failed test raised; empty for one that passed, or that pytest fails for passing."""
    from pytest_llmperf.verdict.outcome import XPASS_STRICT

    if report.passed or report.longreprtext.startswith(XPASS_STRICT):
        return ""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash else report.longreprtext
    return next(iter(text.strip().splitlines()), "failed").removeprefix("pytest_llmperf.errors.")


def _check_marker(item: pytest.Item) -> None:
    """A wrong marker is told in every run, also in those that leave the perf tests out."""
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
    """Those of ours that a test uses. A project may have an ``engine`` of its own, which makes no perf test."""
    known = getattr(item, "_fixtureinfo", None)  # pytest has no public way to ask whose a fixture is
    found = known.name2fixturedefs if known else {}
    return {name for name in PERF_FIXTURES if name in found and found[name][-1].func.__module__ == __name__}


def _is_wanted(item: pytest.Item) -> bool:
    options = item.config.stash.get(OPTIONS, None)
    return options is None or (not is_repetition(item) and (not options.only or test_key(item) in options.only))


def _is_parametrized(metafunc: pytest.Metafunc, name: str) -> bool:
    return any(name in call.params for call in metafunc._calls)  # noqa: SLF001  # pytest has no public way to ask


def _model_param(item: pytest.Item) -> Any:
    """What a test names the model by that is loaded for it; ``None`` where none is."""
    callspec = getattr(item, "callspec", None)
    loaded = MODEL_FIXTURES if item.config.stash[OPTIONS].loads_models else ("llm",)
    return next((callspec.params[name] for name in loaded if name in callspec.params), None) if callspec else None


def _one_model_after_another(items: list[pytest.Item]) -> list[pytest.Item]:
    """Stable order by first appearance of each test's model, so that none is loaded twice.

    pytest groups by parameter too, but before 9.2 by its position, so that each module loaded the models anew.
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
