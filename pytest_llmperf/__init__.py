"""Performance regression testing of LLM inference, as a pytest plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_llmperf.engines.engine import Engine
    from pytest_llmperf.engines.executions.assisted import Assisted, Lookup
    from pytest_llmperf.engines.executions.graph import Graph
    from pytest_llmperf.engines.executions.torch_compile import Compile
    from pytest_llmperf.errors import (
        BaselineError,
        LlmperfError,
        MeasurementError,
        MissingDependency,
        ModelError,
        UsageError,
    )
    from pytest_llmperf.hardware.device_timer import device_timer
    from pytest_llmperf.hardware.memory import PeakMemory
    from pytest_llmperf.measure.kernel import KernelTimer
    from pytest_llmperf.measure.kernel_timing import Roofline, Timing
    from pytest_llmperf.models.load import LoadedModel
    from pytest_llmperf.models.spec import ModelSpec
    from pytest_llmperf.runner.fixtures import LlmPerf
    from pytest_llmperf.storage.dataframe import load_runs
    from pytest_llmperf.storage.schema import TestResult

__all__ = [
    "Assisted",
    "BaselineError",
    "Compile",
    "Engine",
    "Graph",
    "KernelTimer",
    "LlmPerf",
    "LlmperfError",
    "LoadedModel",
    "Lookup",
    "MeasurementError",
    "MissingDependency",
    "ModelError",
    "ModelSpec",
    "PeakMemory",
    "Roofline",
    "TestResult",
    "Timing",
    "UsageError",
    "__version__",
    "device_timer",
    "load_runs",
]


_HOMES = {
    "Assisted": "pytest_llmperf.engines.executions.assisted",
    "BaselineError": "pytest_llmperf.errors",
    "Compile": "pytest_llmperf.engines.executions.torch_compile",
    "Engine": "pytest_llmperf.engines.engine",
    "Graph": "pytest_llmperf.engines.executions.graph",
    "KernelTimer": "pytest_llmperf.measure.kernel",
    "LlmPerf": "pytest_llmperf.runner.fixtures",
    "LlmperfError": "pytest_llmperf.errors",
    "LoadedModel": "pytest_llmperf.models.load",
    "Lookup": "pytest_llmperf.engines.executions.assisted",
    "MeasurementError": "pytest_llmperf.errors",
    "MissingDependency": "pytest_llmperf.errors",
    "ModelError": "pytest_llmperf.errors",
    "ModelSpec": "pytest_llmperf.models.spec",
    "PeakMemory": "pytest_llmperf.hardware.memory",
    "Roofline": "pytest_llmperf.measure.kernel_timing",
    "TestResult": "pytest_llmperf.storage.schema",
    "Timing": "pytest_llmperf.measure.kernel_timing",
    "UsageError": "pytest_llmperf.errors",
    "device_timer": "pytest_llmperf.hardware.device_timer",
    "load_runs": "pytest_llmperf.storage.dataframe",
}


def __getattr__(name: str) -> Any:
    """Import on first use what a plain pytest run does not need."""
    if name == "__version__":
        from importlib.metadata import version

        return version("pytest-llmperf")
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
