"""Registry of executions by name."""

from __future__ import annotations

from collections.abc import Mapping

from pytest_llmperf.engines.executions.assisted import Assisted, Lookup
from pytest_llmperf.engines.executions.execution import Execution, Generate
from pytest_llmperf.engines.executions.graph import Graph
from pytest_llmperf.engines.executions.greedy_loop import GreedyLoop
from pytest_llmperf.engines.executions.torch_compile import Compile
from pytest_llmperf.errors import UsageError

EXECUTIONS: Mapping[str, Execution] = {
    one.name: one for one in (Generate(), GreedyLoop(), Compile(), Graph(), Lookup())
}
"""Each execution with its default settings."""


def find_execution(given: str | Execution) -> Execution:
    """Look up an execution by name; an execution object is returned as is.

    Raises:
        UsageError: the name is unknown, or needs a draft model.
    """
    if not isinstance(given, str):
        return given
    if given == Assisted.name:
        raise UsageError(
            "execution 'assisted' needs a draft model: expected --llmperf-assistant MODEL, or in a test "
            "execution=Assisted('MODEL')"
        )
    if given not in EXECUTIONS:
        raise UsageError(f"unknown execution {given!r}: expected one of {', '.join((*EXECUTIONS, Assisted.name))}")
    return EXECUTIONS[given]
