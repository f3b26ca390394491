"""Every way to decode, by its name."""

from __future__ import annotations

from collections.abc import Mapping

from pytest_llmperf.engines.executions.execution import Eager, Execution, greedy_loop, library_generate
from pytest_llmperf.engines.executions.graph import Graph
from pytest_llmperf.engines.executions.torch_compile import Compile
from pytest_llmperf.errors import UsageError

EXECUTIONS: Mapping[str, Execution] = {
    one.name: one for one in (Eager("generate", library_generate), Eager("loop", greedy_loop), Compile(), Graph())
}
"""Each as it is without further settings."""


def find_execution(given: str | Execution) -> Execution:
    """The execution of that name, or the one given.

    Raises:
        UsageError: there is none.
    """
    if not isinstance(given, str):
        return given
    if given not in EXECUTIONS:
        raise UsageError(f"unknown execution {given!r}: expected one of {', '.join(EXECUTIONS)}")
    return EXECUTIONS[given]
