"""Start of an active run: register its plugins, and after collection open the workplace."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import pytest

from pytest_llmperf.hardware.device import check_device_name, require_models_extra, worker_devices
from pytest_llmperf.runner import COLLECTED, MODELS, OPTIONS, SESSION, WORKPLACE, is_perf
from pytest_llmperf.runner.collection import Collection
from pytest_llmperf.runner.config import Options, baselines_arguments, measuring_arguments
from pytest_llmperf.runner.judging import Collector
from pytest_llmperf.runner.once import Protocol
from pytest_llmperf.runner.perf_test import one_model_after_another, settings_of, spec_of, test_key
from pytest_llmperf.runner.session import Session, refuse_early
from pytest_llmperf.storage.provenance import reporter_of
from pytest_llmperf.system.run_processes import begin_run
from pytest_llmperf.verdict.outcome import RunOutcome

if TYPE_CHECKING:
    from pytest_llmperf.runner.context import PlannedTest, Workplace


def start_session(config: pytest.Config) -> None:
    """Read the options and register the plugins of an active run.

    Raises:
        UsageError, MissingDependency: an option cannot work.
    """
    begin_run()
    config.stash[OPTIONS] = options = Options.from_config(config)
    config.stash[COLLECTED] = collected = Collection(config, lambda item: test_key(item) if is_perf(item) else None)
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

    config.pluginmanager.register(Ending(config, running), "llmperf-ending")


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


def prepare(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sort the collected perf tests by model, and open the workplace in which they run.

    Raises:
        UsageError: a device, model or quantization is not available here.
        BaselineError: the baseline cannot be trusted.
    """
    items[:] = one_model_after_another(items)
    if not config.option.collectonly and (items or _may_miss_tests(config)):
        _open_workplace(config, items)


def _may_miss_tests(config: pytest.Config) -> bool:
    """Whether a run without perf tests must look for missing ones; if not, nothing heavy is imported."""
    return any(config.stash[OPTIONS].baselines.glob("*.json")) and not config.stash[COLLECTED].is_narrowed(())


def _open_workplace(config: pytest.Config, items: Sequence[pytest.Item]) -> None:
    from pytest_llmperf.runner.context import PlannedTest, Workplace

    planned = {item.nodeid: PlannedTest(test_key(item), settings_of(item), spec_of(item)) for item in items}
    config.stash[WORKPLACE] = workplace = Workplace(
        config.stash[OPTIONS],
        list(planned.values()),
        root=config.rootpath,
        settings=measuring_arguments(config),
    )
    config.stash[MODELS] = {name: repr(test.spec) for name, test in planned.items()}
    _choose_runner(config, workplace, planned)
    _show_progress(config, workplace)


def _show_progress(config: pytest.Config, workplace: Workplace) -> None:
    from pytest_llmperf.runner.live_line import LiveLine

    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if LiveLine.fits(reporter):
        capture = config.pluginmanager.get_plugin("capturemanager")
        uncaptured = capture.global_and_fixture_disabled if capture else nullcontext
        workplace.progress.watchers.append(LiveLine(reporter, uncaptured))


def _choose_runner(config: pytest.Config, workplace: Workplace, planned: Mapping[str, PlannedTest]) -> None:
    """Register the plugins that run tests instead of pytest, or that report to a parent process, if requested."""
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


def tell_found(config: pytest.Config, items: Sequence[pytest.Item]) -> None:
    """Record missing tests and environment differences of the tests that will run."""
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


def _missing(config: pytest.Config, items: Sequence[pytest.Item]) -> list[str]:
    """Return the baseline's tests that no longer exist."""
    workplace, collected = config.stash[WORKPLACE], config.stash[COLLECTED]
    if workplace.options.only or collected.is_narrowed(map(test_key, items)):
        return []
    return workplace.comparison.missing(collected.tests, collected.would_find)
