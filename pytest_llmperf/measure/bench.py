"""The measuring side of a run: one device, its clock, and the one model that is loaded."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_llmperf.errors import LlmperfError, MeasurementError, ModelError
from pytest_llmperf.measure.clock import NS_PER_MS, clock_for
from pytest_llmperf.measure.collector import set_libraries_aside
from pytest_llmperf.measure.contain import give_back, is_out_of_memory, one_line, time_limit
from pytest_llmperf.measure.device import resolve_device
from pytest_llmperf.measure.execution import Request
from pytest_llmperf.measure.generation import Plan, measure_generation
from pytest_llmperf.measure.injection import Burden
from pytest_llmperf.measure.memory import trace_memory
from pytest_llmperf.measure.profile import profile_request
from pytest_llmperf.measure.progress import LOAD, TEST_BODY, Moment, Progress
from pytest_llmperf.measure.result import LoadFacts, test_result
from pytest_llmperf.models.load import LoadedModel, load, prepare
from pytest_llmperf.models.registry import ModelRegistry
from pytest_llmperf.models.weights import weights_bytes
from pytest_llmperf.records.schema import PhaseProfile, TestResult

if TYPE_CHECKING:
    from pytest_llmperf.models.spec import ModelSpec

DEFAULT_MODELS = {"cpu": "synthetic:32m"}
DEFAULT_ACCELERATOR_MODEL = "synthetic:1b"


def default_model(device: str) -> str:
    """The model that is measured when none is named."""
    return DEFAULT_MODELS.get(device, DEFAULT_ACCELERATOR_MODEL)


class Bench:
    """Loads and measures on one device.

    Args:
        device: as :func:`resolve_device` takes it.

    Attributes:
        load_limit_s: Longest that loading a model may take, in seconds; ``None`` for no limit.

    Raises:
        UsageError: there is no such device here.
    """

    def __init__(self, device: str) -> None:
        self.device = resolve_device(device)
        self.clock = clock_for(self.device)
        self.progress = Progress(self.device)
        self.models = ModelRegistry(self.device, load=self._load)
        self.load_limit_s: float | None = None
        self._facts: dict[ModelSpec, LoadFacts] = {}

    def measure(  # noqa: PLR0913  # what is measured, for whom, and what is done beside it
        self,
        loaded: LoadedModel,
        plan: Plan,
        *,
        test: str,
        run_id: str,
        burdens: Sequence[Burden] = (),
        traces: Path | None = None,
    ) -> TestResult:
        """Measure a plan on a loaded model, for one test of one run, with burdens on every request.

        With ``traces``, one more request is profiled (see `profile_request`).

        Raises:
            MeasurementError: what was measured must not become a number, or measuring failed.
            UsageError: the plan does not fit the model.
        """
        try:
            measured = measure_generation(
                loaded.model,
                plan,
                device=self.device,
                clock=self.clock,
                tokenizer=loaded.tokenizer,
                enter=self.progress.enter,
                on_request=self.progress.tell_request,
                burdens=burdens,
                profile=partial(self._profile, traces),
            )
        except LlmperfError:
            raise
        except (RuntimeError, MemoryError) as error:
            message = f"measuring {loaded.spec} ended with {one_line(error, self.progress)}"
            if is_out_of_memory(error):
                give_back(error, self.device)
            raise MeasurementError(message) from error
        self.progress.enter(TEST_BODY)
        return test_result(measured, loaded, self._facts[loaded.spec], test=test, run_id=run_id)

    def _profile(self, traces: Path | None, request: Request, output_tokens: int) -> Mapping[str, PhaseProfile]:
        if traces is None:
            return {}
        self.progress.enter("profile")
        return profile_request(request, output_tokens, device=self.device, clock=self.clock, traces=traces)

    def _load(self, spec: ModelSpec, device: str) -> LoadedModel:
        """Load a model, and keep what that took: imports and the building of a synthetic model are left out."""
        prepare(spec, device)
        set_libraries_aside()
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
            raise ModelError(f"{error} ({most} at most)") from error.__cause__
        self._facts[spec] = LoadFacts(load_ms, weights_bytes(loaded.model), trace.peaks[LOAD])
        return loaded
