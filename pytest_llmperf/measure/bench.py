"""The bench: loads one model at a time on one device and measures it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_llmperf.engines.engine import Engine
from pytest_llmperf.engines.engine_registry import EngineFactory, EngineOptions
from pytest_llmperf.engines.executions.execution import Request
from pytest_llmperf.errors import LlmperfError, MeasurementError, ModelError
from pytest_llmperf.hardware.clock import NS_PER_MS, Clock, clock_for
from pytest_llmperf.hardware.device import resolve_device, torch_device
from pytest_llmperf.hardware.environment import environment
from pytest_llmperf.hardware.garbage_collector import set_libraries_aside
from pytest_llmperf.hardware.memory import is_out_of_memory, trace_memory
from pytest_llmperf.measure.bandwidth import bandwidth_share
from pytest_llmperf.measure.generation import Measurement, Plan, measure_generation
from pytest_llmperf.measure.generation_result import NOT_LOADED, LoadFacts, test_result
from pytest_llmperf.measure.guards import GUARDS, Watch, watch
from pytest_llmperf.measure.injection import Injection
from pytest_llmperf.measure.operator_profile import profile_request
from pytest_llmperf.measure.peaks import measured_peaks, spare_bandwidth
from pytest_llmperf.measure.progress import LOAD, TEST_BODY, Moment, Progress
from pytest_llmperf.measure.roofline_time import roofline_figures
from pytest_llmperf.measure.serving_measurement import measure_serving
from pytest_llmperf.measure.serving_plan import ServingPlan
from pytest_llmperf.measure.serving_result import serving_result
from pytest_llmperf.measure.timeout import give_back, one_line, time_limit
from pytest_llmperf.models.load import LoadedModel, as_it_is, check_whole, load, misplaced, prepare
from pytest_llmperf.models.model_registry import ModelRegistry
from pytest_llmperf.models.quantization import QUANTIZATIONS, check_available
from pytest_llmperf.models.source import check_source
from pytest_llmperf.storage.schema import PhaseProfile, TestResult
from pytest_llmperf.system.run_processes import begin_use

if TYPE_CHECKING:
    from pytest_llmperf.metrics import Scalar
    from pytest_llmperf.models.spec import ModelSpec


class Bench:
    """Loads and measures models on one device.

    Args:
        device: the device, as :func:`resolve_device` takes it.
        guards: names of the guards that may invalidate a measurement.
        counted: whether work is counted and no times are measured.
        times_only: whether times are measured and nothing else is.

    Attributes:
        load_limit_s: Time limit for loading a model, in seconds; ``None`` for no limit.

    Raises:
        UsageError: the device does not exist.
    """

    def __init__(
        self,
        device: str,
        guards: frozenset[str] = frozenset(GUARDS),
        *,
        counted: bool = False,
        times_only: bool = False,
    ) -> None:
        self.device = torch_device(resolve_device(device, fakes=True))
        self.guards = guards
        self.counted = counted
        self.times_only = times_only
        self.progress = Progress(self.device)
        self.models = ModelRegistry(self.device, load=self._load)
        self.load_limit_s: float | None = None
        self._facts: dict[ModelSpec, LoadFacts] = {}
        self._own: Engine | None = None
        self._own_failure = ""

    @cached_property
    def clock(self) -> Clock:
        """The device's clock. First use creates a context on the device, so a process that only waits has none."""
        begin_use()
        return clock_for(self.device)

    def environment(self) -> dict[str, Scalar]:
        """The environment of a run."""
        return environment(self.device)

    def computing(self) -> AbstractContextManager[object]:
        """A block in which tests run."""
        return nullcontext()

    def check_spec(self, spec: ModelSpec) -> None:
        """Check a spec before anything is measured.

        Raises:
            UsageError, MissingDependency: it cannot be loaded here.
        """
        check_available(QUANTIZATIONS[spec.quantization], self.device)
        check_source(spec)

    def refuse_without_device(self, what: str) -> None:
        """Skip the test if there is no device: ``what`` is what it is needed for."""

    def measure(  # noqa: PLR0913  # the model, the plan, ids, and options
        self,
        loaded: LoadedModel,
        plan: Plan,
        *,
        test: str,
        run_id: str,
        injections: Sequence[Injection] = (),
        traces: Path | None = None,
    ) -> TestResult:
        """Measure a plan on a loaded model, for one test of one run, with the injections in every request.

        With ``traces``, one more request is profiled (see `profile_request`).

        Raises:
            MeasurementError: measuring failed, or its result must not be used.
            UsageError: the plan does not fit the model.
        """
        check_whole(loaded.model)
        with watch(self.device, self.progress) as watched, self._in_one_line(loaded.title):
            measured = measure_generation(
                loaded.model,
                replace(plan, counted=self.counted, times_only=self.times_only),
                device=self.device,
                clock=self.clock,
                tokenizer=loaded.tokenizer,
                tokenizer_error=loaded.tokenizer_error,
                enter=self.progress.enter,
                on_request=self.progress.tell_request,
                injections=injections,
                profile=partial(self._profile, traces),
            )
        self.progress.enter(TEST_BODY)
        facts = self._facts[loaded.spec] if loaded.spec else NOT_LOADED
        if self.counted:
            return test_result(measured, as_it_is(loaded), facts, test=test, run_id=run_id)
        measured = self._with_physics(measured, loaded, watched)
        result = test_result(measured, as_it_is(loaded), facts, test=test, run_id=run_id)
        return self._guarded(result, watched, misplaced=misplaced(loaded.model, self.device))

    def serve(self, engine: Engine, plan: ServingPlan, *, test: str, run_id: str) -> TestResult:
        """Measure how an engine serves the requests of a plan, for one test of one run.

        Raises:
            MeasurementError: measuring failed, or its result must not be used.
            UsageError: the plan does not fit the model.
        """
        with watch(self.device, self.progress) as watched, self._in_one_line(f"serving with {engine.name}"):
            measured = measure_serving(engine, plan, enter=self.progress.enter, on_request=self.progress.tell_request)
        self.progress.enter(TEST_BODY)
        result = serving_result(measured, engine, test=test, run_id=run_id)
        # The guards would object to an engine in another process.
        return result if engine.device is None else self._guarded(result, watched)

    def own_engine(self, factory: EngineFactory, options: EngineOptions) -> Engine:
        """The engine with its own model, created on first use within the time limit for loading.

        Raises:
            LlmperfError: the engine cannot be created. Later calls raise it again without another attempt.
        """
        if self._own_failure:
            raise ModelError(self._own_failure)
        if self._own is None:
            self.progress.enter(LOAD)
            try:
                with time_limit(self.load_limit_s, self.progress):
                    self._own = factory.make(options)
            except LlmperfError as error:
                self._own_failure = str(error)
                raise
        return self._own

    def release(self) -> None:
        """Release the loaded model and the engine with its own model."""
        if self._own is not None:
            self._own.close()
            self._own = None
        self.models.release()

    @contextmanager
    def _in_one_line(self, what: str) -> Iterator[None]:
        """Turn what a model's code raises into a one-line MeasurementError; after an out-of-memory error, free memory.

        Outcomes of pytest, such as a skip, are no Exceptions and pass.
        """
        try:
            yield
        except LlmperfError:
            raise
        except Exception as error:  # each model and library raises its own
            message = f"measuring {what} failed: {one_line(error, self.progress)}"
            if is_out_of_memory(error):
                give_back(error, self.device)
            raise MeasurementError(message) from error

    def _with_physics(self, measured: Measurement, loaded: LoadedModel, watched: Watch) -> Measurement:
        """Add the share of the memory bandwidth, roofline times, and energy where the device has a counter."""
        if measured.counts is None:
            return measured
        weights, bandwidth = measured.weights_bytes, spare_bandwidth(self.device)
        figures = [*measured.figures, bandwidth_share(loaded.model, measured, weights=weights, bandwidth=bandwidth)]
        if measured.counts.figures:
            figures += roofline_figures(measured.counts.work, measured_peaks(self.device))
        if watched.gpu:
            figures.append(watched.gpu.energy(measured.batch_size * measured.plan.output_tokens))
        return replace(measured, figures=figures)

    def _guarded(self, result: TestResult, watched: Watch, *, misplaced: str = "") -> TestResult:
        """Add the observed conditions, and mark the result invalid if a guard objects."""
        observed = watched.observed(result.observation, misplaced=misplaced)
        conditions = observed.conditions
        if not self.times_only:
            conditions["copy_bytes_per_s"] = spare_bandwidth(self.device)
        update = {"conditions": conditions, "invalid": observed.objection(self.guards)}
        return result.model_copy(update={"observation": result.observation.model_copy(update=update)})

    def _profile(self, traces: Path | None, request: Request, output_tokens: int) -> Mapping[str, PhaseProfile]:
        if traces is None:
            return {}
        self.progress.enter("profile")
        return profile_request(request, output_tokens, device=self.device, clock=self.clock, traces=traces)

    def _load(self, spec: ModelSpec, device: str) -> LoadedModel:
        """Load a model and record time and memory; imports and building a synthetic model are excluded."""
        prepare(spec, device)
        set_libraries_aside()
        if not (self.counted or self.times_only):
            spare_bandwidth(device)  # measured while memory is free
        self.progress.enter(LOAD)
        try:
            with trace_memory(device, LOAD) as trace, time_limit(self.load_limit_s, self.progress):
                self.clock.synchronize()
                start = time.perf_counter_ns()
                loaded = load(spec, device)
                self.clock.synchronize()
                load_ms = (time.perf_counter_ns() - start) / NS_PER_MS
        except ModelError as error:
            if not is_out_of_memory(error.__cause__):
                raise
            peak = trace.peaks[LOAD]
            most = Moment(LOAD, peak.allocated_bytes, peak.reserved_bytes, peak.rss_bytes)
            raise ModelError(f"{error} (peak {most})") from error.__cause__
        self._facts[spec] = LoadFacts(load_ms, trace.peaks[LOAD])
        return loaded
