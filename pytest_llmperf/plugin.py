"""pytest plugin: command-line options, marker, selection of tests, and fixtures.

Every pytest run of every project that has this package installed imports this module, so it is small and imports
nothing heavy: torch, transformers, pandas, scipy, rich and pydantic are imported only before perf tests run. The hooks
of a run with ``--llmperf`` are in `runner.hooks`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_llmperf import runner
from pytest_llmperf.runner import options

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from contextlib import AbstractContextManager

    from pytest_llmperf.engines.engine import Engine
    from pytest_llmperf.hardware.memory import PeakMemory
    from pytest_llmperf.measure.kernel import KernelTimer
    from pytest_llmperf.models.load import LoadedModel
    from pytest_llmperf.runner.fixtures import LlmPerf

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
    """Register the hooks of an active run; take ``--device`` unless another plugin or a conftest has declared it."""
    given = early_config.known_args_namespace
    if given.llmperf:
        _register_hooks(early_config)  # now: the hooks of conftests wrap those that are registered before them
    result = yield
    if given.help or given.llmperf:
        from pytest_llmperf.runner.device_option import take_device_option

        with runner.as_usage_errors():
            take_device_option(early_config, parser, args)
    return result


def pytest_configure(config: pytest.Config) -> None:
    """Resolve the options, and reject at once those that cannot work."""
    config.addinivalue_line("markers", MARKER)
    with runner.as_usage_errors():
        if config.getoption("llmperf"):
            from pytest_llmperf.runner.startup import start_session

            _register_hooks(config)  # a conftest may have set the option
            start_session(config)
        elif forgotten := options.forgotten_flag(config):
            raise pytest.UsageError(f"{forgotten} needs --llmperf, which runs the perf tests")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Select the perf tests, or without ``--llmperf`` the other tests; group perf tests by model."""
    active = runner.OPTIONS in config.stash
    if active or any(map(runner.is_perf, items)):
        from pytest_llmperf.runner.selection import select

        with runner.as_usage_errors():
            select(config, items, active=active)


@pytest.fixture(scope="session")
def llm(request: pytest.FixtureRequest) -> LoadedModel:
    """A loaded model; parametrize it indirectly with a quantization name or a ``ModelSpec``.

    One model is in memory at a time, and each is loaded once per run.
    """
    from pytest_llmperf.runner import fixtures

    return fixtures.load_model(request)


@pytest.fixture(scope="session")
def engine(request: pytest.FixtureRequest) -> Engine:
    """An engine that serves requests, chosen with ``--llmperf-engine``.

    The transformers engine is parametrized like ``llm`` and shares its models. Other engines serve the one model they
    have.
    """
    from pytest_llmperf.runner import fixtures

    return fixtures.start_engine(request)


@pytest.fixture
def llmperf(request: pytest.FixtureRequest) -> LlmPerf:
    """Measure and record a workload: ``llmperf.generate(llm, batch_size=8)``."""
    from pytest_llmperf.runner import fixtures

    return fixtures.new_llmperf(request)


@pytest.fixture
def cuda_timer(request: pytest.FixtureRequest) -> KernelTimer:
    """Time a callable without a model: ``timing = cuda_timer(fn, *args)``, then ``timing.median_ms``."""  # noqa: D402  # an example
    from pytest_llmperf.runner import fixtures

    return fixtures.new_timer(request)


@pytest.fixture
def peak_memory(request: pytest.FixtureRequest) -> Callable[[], AbstractContextManager[PeakMemory]]:
    """Peak memory of a block: ``with peak_memory() as peak: ...``, then ``peak.allocated_bytes``."""  # noqa: D402  # an example
    from pytest_llmperf.runner import fixtures

    return fixtures.memory_follower(request)


def _register_hooks(config: pytest.Config) -> None:
    from pytest_llmperf.runner import hooks

    if not config.pluginmanager.is_registered(hooks):
        config.pluginmanager.register(hooks, "llmperf-hooks")
