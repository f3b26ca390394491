"""The measuring side of a run: one device, its clock, and the one model that is loaded."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pytest_llmperf.errors import LlmperfError, MeasurementError
from pytest_llmperf.measure.clock import NS_PER_MS, clock_for
from pytest_llmperf.measure.device import resolve_device
from pytest_llmperf.measure.generation import Plan, measure_generation
from pytest_llmperf.measure.injection import Burden
from pytest_llmperf.measure.memory import trace_memory
from pytest_llmperf.measure.result import LoadFacts, test_result
from pytest_llmperf.models.load import LoadedModel, load, prepare
from pytest_llmperf.models.registry import ModelRegistry
from pytest_llmperf.models.weights import weights_bytes
from pytest_llmperf.records.schema import TestResult

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

    Raises:
        UsageError: there is no such device here.
    """

    def __init__(self, device: str) -> None:
        self.device = resolve_device(device)
        self.clock = clock_for(self.device)
        self.models = ModelRegistry(self.device, load=self._load)
        self._facts: dict[ModelSpec, LoadFacts] = {}

    def measure(
        self, loaded: LoadedModel, plan: Plan, *, test: str, run_id: str, burdens: Sequence[Burden] = ()
    ) -> TestResult:
        """Measure a plan on a loaded model, for one test of one run, with burdens on every request.

        Raises:
            MeasurementError: what was measured must not become a number, or measuring failed.
            UsageError: the plan does not fit the model.
        """
        try:
            measured = measure_generation(loaded.model, plan, device=self.device, clock=self.clock, burdens=burdens)
        except LlmperfError:
            raise
        except (RuntimeError, MemoryError) as error:
            first_line = str(error).strip().partition("\n")[0]
            raise MeasurementError(
                f"measuring {loaded.spec} ended with {type(error).__name__}: {first_line}"
            ) from error
        return test_result(measured, loaded, self._facts[loaded.spec], test=test, run_id=run_id)

    def _load(self, spec: ModelSpec, device: str) -> LoadedModel:
        """Load a model, and keep what that took: imports and the building of a synthetic model are left out."""
        prepare(spec, device)
        with trace_memory(device, "load") as trace:
            self.clock.synchronize()
            start = time.perf_counter_ns()
            loaded = load(spec, device)
            self.clock.synchronize()
            load_ms = (time.perf_counter_ns() - start) / NS_PER_MS
        self._facts[spec] = LoadFacts(load_ms, weights_bytes(loaded.model), trace.peaks["load"])
        return loaded
