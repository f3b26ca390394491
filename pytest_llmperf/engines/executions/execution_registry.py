"""Registry of executions by name."""

from __future__ import annotations

from collections.abc import Mapping

from pytest_llmperf.engines.executions.execution import Eager, Execution, library_generate
from pytest_llmperf.engines.executions.graph import Graph
from pytest_llmperf.engines.executions.greedy_loop import GreedyLoop
from pytest_llmperf.engines.executions.torch_compile import Compile
from pytest_llmperf.errors import UsageError

EXECUTIONS: Mapping[str, Execution] = {
    one.name: one for one in (Eager("generate", library_generate), GreedyLoop(), Compile(), Graph())
}
"""Each execution with its default settings."""


def find_execution(given: str | Execution) -> Execution:
    """Look up an execution by name; an execution object is returned as is.

    Raises:
        UsageError: the name is unknown.
    """
    if not isinstance(given, str):
        return given
    if given not in EXECUTIONS:
        raise UsageError(f"unknown execution {given!r}: expected one of {', '.join(EXECUTIONS)}")
    return EXECUTIONS[given]
