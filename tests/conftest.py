"""Fixtures of the plugin's tests: a user's project, and a cache of synthetic models."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages

import pytest
from import_server.forking_popen import start_for_workers, start_on_demand
from perf_project import DECODE_TEST, FAKE_CLOCK, QUICK

# Tests measure no speed, and two of them at once must not wait for each other's threads.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's library is imported
# Otherwise each process of a test would compile all of our modules.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

INNER = (
    "-p no:hypothesispytest",  # it takes a second and a half at each end
    "--llmperf-guards=none",  # they would see the other tests
    "-W ignore::pytest.PytestUnraisableExceptionWarning",  # what an earlier inner run left open
)

PROGRAMS = ("__main__", "overlay_startup")
"""Modules that are run, not imported."""

_recorded: dict[tuple[str, tuple[float, ...]], tuple[str, str]] = {}


def pytest_configure(config: pytest.Config) -> None:
    """Start processes as forks, except in a run of this repository's perf tests: no fork measures for it."""
    if not config.getoption("--llmperf", default=False):
        starts_workers = getattr(config.option, "tx", None) and not hasattr(config, "workerinput")
        (start_for_workers if starts_workers else start_on_demand)()
        with suppress(ImportError):  # a GPU machine may lack hypothesis: tests that need it say so
            _let_examples_take_long()


def _let_examples_take_long() -> None:
    """On a busy machine, any example of hypothesis may take seconds."""
    from hypothesis import HealthCheck, settings

    settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("busy")


class Project:
    """A folder with perf tests, run with a tiny model and a clock that advances ``STEP_MS`` at each stamp."""

    def __init__(self, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pytester = pytester
        self.monkeypatch = monkeypatch
        self.path = pytester.path
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setenv("PYTEST_ADDOPTS", " ".join(INNER))
        # pytest-benchmark would find the xdist that runs these tests.
        for name in ("CI", "BUILD_NUMBER", "GITHUB_RUN_ID", "CI_JOB_ID", "PYTEST_XDIST_WORKER"):
            monkeypatch.delenv(name, raising=False)

    def write(self, test: str = DECODE_TEST, *, conftest: str = FAKE_CLOCK) -> None:
        self.pytester.makeconftest(conftest)
        self.pytester.makepyfile(test_perf=test)

    def run(self, *arguments: str, step_ms: float = 1.0, session: str = "") -> pytest.RunResult:
        self.monkeypatch.setenv("STEP_MS", str(step_ms))
        self.monkeypatch.setenv("LLMPERF_SESSION_ID", session)
        return self.pytester.runpytest_inprocess(*QUICK, *arguments)

    def record(self, *steps_ms: float) -> None:
        """Record one run per step, each in a session of its own. Later calls copy the recorded baseline."""
        source = (self.path / "test_perf.py").read_text()
        if (source, steps_ms) not in _recorded:
            self._record(steps_ms)
            _recorded[source, steps_ms] = (self.baseline().name, self.baseline().read_text())
        name, text = _recorded[source, steps_ms]
        (self.path / "baselines").mkdir(exist_ok=True)
        (self.path / "baselines" / name).write_text(text)

    def _record(self, steps_ms: tuple[float, ...]) -> None:
        for number, step_ms in enumerate(steps_ms):
            result = self.run(
                "--llmperf-measure-only", "--llmperf-update", step_ms=step_ms, session=f"session {number}"
            )
            assert result.ret == 0, result.outlines

    def baseline(self) -> Path:
        (found,) = (self.path / "baselines").glob("*.json")
        return found


@pytest.fixture(scope="session")
def model_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep the tests' synthetic models out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("models")
        patch.setenv("LLMPERF_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def _imported_once() -> None:
    """Import what can be imported only once in a process, before an inner run does it and forgets it."""
    # pandas imports the last one when it first meets pyarrow, where it registers types.
    names = ("pandas", "pyarrow.parquet", "ruptures", "pandas.core.arrays.arrow.extension_types")
    for name in names:  # a GPU machine may lack them: tests that need them say so
        with suppress(ImportError):
            import_module(name)


def _old_objects_aside() -> None:
    """Freeze what is imported by now: each measurement collects garbage, and would scan all of it."""
    gc.collect()
    gc.freeze()


_of_each_module = pytest.fixture(scope="module", autouse=True)(_old_objects_aside)
old_objects_aside = pytest.fixture(_old_objects_aside)
"""For modules whose tests each import more: collections take a third of their time. No model may outlive its test."""


@pytest.fixture(scope="session")
def _imported(model_cache: Path) -> None:
    """Import everything: inner runs forget their imports. The first measurement imports most of the libraries."""
    import pytest_llmperf
    from pytest_llmperf import ModelSpec
    from pytest_llmperf.measure.bench import Bench
    from pytest_llmperf.measure.generation import Plan

    bench = Bench("cpu")
    for execution, quantization in (("loop", "fp32"), ("generate", "nf4")):
        loaded = bench.models.get(ModelSpec("synthetic:tiny", quantization))
        plan = Plan(batch_size=1, input_tokens=2, output_tokens=2, execution=execution, requests=1, warmup_cap=0)
        bench.measure(loaded, plan, test="test", run_id="run")
    bench.models.release()
    for module in walk_packages(pytest_llmperf.__path__, "pytest_llmperf."):
        if not module.name.endswith(PROGRAMS) and ".suite." not in module.name:
            with suppress(ImportError):  # some sessions have no xdist
                import_module(module.name)
    _old_objects_aside()


@pytest.fixture(scope="session")
def _own_attributes(_imported: None) -> list[tuple[object, dict[str, object]]]:
    """Our modules and classes, and what they hold before the first inner run."""
    modules = [module for name, module in sys.modules.items() if name.startswith("pytest_llmperf")]
    classes = {one for module in modules for one in vars(module).values() if _is_own_class(one)}
    return [(owner, dict(vars(owner))) for owner in (*modules, *classes)]


@pytest.fixture
def _own_modules(_own_attributes: list[tuple[object, dict[str, object]]]) -> Iterator[None]:
    """Undo changes that an inner run's conftest made to our modules, because inner runs share this process."""
    yield
    for owner, attributes in _own_attributes:
        now = vars(owner)
        for name, value in attributes.items():
            if now.get(name) is not value:
                setattr(owner, name, value)


def _is_own_class(found: object) -> bool:
    return isinstance(found, type) and found.__module__.startswith("pytest_llmperf")


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, _own_modules: None) -> Project:
    return Project(pytester, monkeypatch)
