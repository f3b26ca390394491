"""Performance regression testing of LLM inference, as a pytest plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_llmperf.errors import (
    BaselineError,
    LlmperfError,
    MeasurementError,
    MissingDependency,
    ModelError,
    UsageError,
)

if TYPE_CHECKING:
    from pytest_llmperf.engines.executions.graph import Graph
    from pytest_llmperf.engines.executions.torch_compile import Compile
    from pytest_llmperf.hardware.device_timer import device_timer
    from pytest_llmperf.models.spec import ModelSpec
    from pytest_llmperf.storage.dataframe import load_runs

__all__ = [
    "BaselineError",
    "Compile",
    "Graph",
    "LlmperfError",
    "MeasurementError",
    "MissingDependency",
    "ModelError",
    "ModelSpec",
    "UsageError",
    "__version__",
    "device_timer",
    "load_runs",
]


_HOMES = {
    "Compile": "pytest_llmperf.engines.executions.torch_compile",
    "Graph": "pytest_llmperf.engines.executions.graph",
    "ModelSpec": "pytest_llmperf.models.spec",
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
