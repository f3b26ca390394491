"""Convert a kernel timing to its stored form; the workload is the callable and its arguments."""

from __future__ import annotations

from pytest_llmperf.measure.figures import cells_of, timed
from pytest_llmperf.measure.guards import by_guard, throttled
from pytest_llmperf.measure.kernel_timing import Timing
from pytest_llmperf.metrics import Figure, Scalar
from pytest_llmperf.storage.schema import Observation, TestResult, Workload

ENGINE = "cuda_timer"
NOT_A_MODELS = "none"
SIZED = "auto"
"""Stored in place of a number of calls that the timer chose."""


def call_result(timing: Timing, *, test: str, run_id: str, guards: frozenset[str] = frozenset()) -> TestResult:
    """The result of one timing, as added to its run; invalid if the device was throttled and that guard is on.

    Raises:
        MeasurementError: the clock measured no time.
    """
    workload = _workload(timing)
    samples = {"call_ms": timing.graph_samples_ms or timing.samples_ms}
    if timing.graph_used:
        samples["eager_call_ms"] = timing.samples_ms
    figures: list[Figure] = [timed(metric, values, lacking="") for metric, values in samples.items()]
    return TestResult(
        workload=workload,
        observation=_observation(timing, test=test, run_id=run_id, workload=workload, guards=guards),
        cells=cells_of(figures, test=test, run_id=run_id, workload=workload),
        samples={metric: list(values) for metric, values in samples.items()},
    )


def _workload(timing: Timing) -> Workload:
    settings: dict[str, Scalar] = {"arguments": timing.arguments, "flushed_l2": timing.flushed_l2}
    if timing.graph_used:
        # A number that depends on the call's time would give each run another workload.
        settings["graph_repetitions"] = SIZED if timing.graph_sized else timing.graph_repetitions
    return Workload(
        engine=ENGINE,
        model=timing.name,
        revision=None,
        quantization=NOT_A_MODELS,
        dtype=NOT_A_MODELS,
        attention=NOT_A_MODELS,
        execution="graph" if timing.graph_used else "eager",
        batch_size=1,
        input_tokens=0,
        output_tokens=0,
        sampling=NOT_A_MODELS,
        prompt_sha256="",
        settings=settings,
    )


def _observation(timing: Timing, *, test: str, run_id: str, workload: Workload, guards: frozenset[str]) -> Observation:
    held_back = throttled(timing.device, timing.held_back) if "throttling" in guards else ""
    conditions = {
        "sm_clock_before_mhz": timing.before.sm_mhz,
        "sm_clock_after_mhz": timing.after.sm_mhz,
        "held_back": " ".join(timing.held_back),
        "no_graph": timing.graph_reason,
        "stop": timing.stop.value,
        "graph_stop": timing.graph_stop.value if timing.graph_stop else "",
        "discarded_samples": timing.discarded,
        "throttled_samples": timing.throttled,
    }
    return Observation(
        run=run_id,
        test=test,
        workload=workload.hash,
        clock=timing.clock,
        requests=len(timing.samples_ms),
        tokens_produced=0,
        attention_requested=None,
        warmup=timing.warmup,
        invalid=by_guard("throttling", held_back) if held_back else "",
        conditions={name: value for name, value in conditions.items() if value},
    )
