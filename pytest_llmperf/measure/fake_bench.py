"""The bench of a fake device: builds models from their configs, and counts what a request does."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pytest_llmperf.errors import ExecutionUnavailable, Unavailable, UsageError
from pytest_llmperf.hardware.clock import Clock, HostClock
from pytest_llmperf.hardware.environment import fake_environment
from pytest_llmperf.hardware.fake_device import FakeDevice, with_values
from pytest_llmperf.measure.bench import Bench
from pytest_llmperf.measure.fake_generation import count_generation
from pytest_llmperf.measure.fake_result import fake_result
from pytest_llmperf.measure.progress import LOAD, TEST_BODY, Progress
from pytest_llmperf.measure.timeout import time_limit
from pytest_llmperf.models.load import LoadedModel, as_it_is, load_tokenizer
from pytest_llmperf.models.shape_only import NO_TOKENIZER, build_shape_only, check_shape_only
from pytest_llmperf.models.source import locate, named_model
from pytest_llmperf.models.synthetic import is_synthetic

if TYPE_CHECKING:
    from pytest_llmperf.engines.engine import Engine
    from pytest_llmperf.engines.engine_registry import EngineFactory, EngineOptions
    from pytest_llmperf.hardware.data_sheet import DataSheet
    from pytest_llmperf.measure.generation import Plan
    from pytest_llmperf.measure.injection import Injection
    from pytest_llmperf.measure.serving_plan import ServingPlan
    from pytest_llmperf.metrics import Scalar
    from pytest_llmperf.models.spec import ModelSpec
    from pytest_llmperf.storage.schema import TestResult


class FakeBench(Bench):
    """Counts models on a device that is not here.

    Args:
        device: ``fake-cpu``, ``fake-cuda`` or ``fake-xpu``.
        sheet: the data sheet of the GPU that it stands for; None if it stands for none.

    Raises:
        UsageError: torch is not built for that kind of device.
    """

    def __init__(self, device: str, sheet: DataSheet | None) -> None:
        super().__init__(device)
        self.fake = FakeDevice(device, sheet)
        self.progress = Progress(self.fake.name)
        self._load_peaks: dict[ModelSpec, int] = {}

    @cached_property
    def clock(self) -> Clock:
        """A clock that nothing is timed with."""
        return HostClock()

    def environment(self) -> dict[str, Scalar]:
        """The environment of a run: versions, and what is known of the device."""
        return fake_environment(self.fake)

    def computing(self) -> AbstractContextManager[object]:
        """A block in which tests run: new tensors have no values."""
        return self.fake.computing()

    def check_spec(self, spec: ModelSpec) -> None:
        """Check a spec before anything is measured.

        Raises:
            UsageError, MissingDependency: it cannot be built here.
        """
        check_shape_only(spec, self.device)

    def refuse_without_device(self, what: str) -> None:
        """Skip the test.

        Raises:
            Unavailable: always.
        """
        _skip(f"{what} needs a device", self.fake)

    def measure(  # noqa: PLR0913  # as of every bench
        self,
        loaded: LoadedModel,
        plan: Plan,
        *,
        test: str,
        run_id: str,
        injections: Sequence[Injection] = (),
        traces: Path | None = None,
    ) -> TestResult:
        """Count one request of a plan on a model.

        Raises:
            ExecutionUnavailable: the execution needs values.
            MeasurementError: an operator's fake implementation is wrong, or the model's code raised.
            UsageError: the plan does not fit the model, or something is injected into requests.
        """
        if injections:
            raise UsageError(
                f"--llmperf-inject {injections[0]}: requests on a fake device take no time: multiply a metric instead, "
                "such as operators_per_token:+15%"
            )
        if traces:
            _skip("profiling needs a device", self.fake)
        with self._in_one_line(loaded.title):
            measured = count_generation(
                loaded.model,
                plan,
                self.fake,
                load_tokenizer=partial(_tokenizer, loaded),
                enter=self.progress.enter,
            )
        self.progress.enter(TEST_BODY)
        load_peak = self._load_peaks.get(loaded.spec) if loaded.spec else None
        return fake_result(measured, as_it_is(loaded), self.fake, load_peak_bytes=load_peak, test=test, run_id=run_id)

    def serve(self, engine: Engine, plan: ServingPlan, *, test: str, run_id: str) -> NoReturn:  # noqa: ARG002  # as of every bench
        """Skip the test: the scheduler of requests reads values.

        Raises:
            ExecutionUnavailable: always.
        """
        raise ExecutionUnavailable(f"serving needs values, which device {self.fake.name!r} does not have")

    def own_engine(self, factory: EngineFactory, options: EngineOptions) -> NoReturn:  # noqa: ARG002  # as of every bench
        """Skip the test: an engine with its own model loads its weights.

        Raises:
            Unavailable: always.
        """
        _skip("an engine needs a device", self.fake)

    def _load(self, spec: ModelSpec, device: str) -> LoadedModel:
        self.progress.enter(LOAD)
        self.fake.live.begin_peak()
        with time_limit(self.load_limit_s, self.progress), self.fake.computing(), with_values():
            loaded = build_shape_only(spec, device, self.fake.computing)
        self._load_peaks[spec] = self.fake.live.peak
        return loaded


def _skip(what: str, device: FakeDevice) -> NoReturn:
    raise Unavailable(f"{what}, and {device.name!r} is none: choose one with --device")


def _tokenizer(loaded: LoadedModel) -> tuple[Any | None, str]:
    """Load a model's tokenizer, which only prompts of words need."""
    if loaded.spec is None or is_synthetic(named_model(loaded.spec)):
        return None, NO_TOKENIZER
    with with_values():
        return load_tokenizer(loaded.spec, locate(loaded.spec, weights=False))
