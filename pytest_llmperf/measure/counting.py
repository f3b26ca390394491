"""A measurement that only counts: which executions can be counted."""

from __future__ import annotations

from pytest_llmperf.errors import ExecutionUnavailable
from pytest_llmperf.storage.comparability import SPECULATIVE

REPLAYING = frozenset({"compile", "graph"})
"""Executions whose steps torch does not dispatch one operator at a time."""


def check_countable(execution: str, *, dispatches: bool = True) -> None:
    """Reject an execution whose work cannot be counted, or depends on the machine.

    Args:
        execution: its name.
        dispatches: whether every operator goes through torch's dispatcher.

    Raises:
        ExecutionUnavailable: its work cannot be counted.
    """
    if execution in SPECULATIVE:
        why = "its work depends on which tokens are accepted, and so on how the processor rounds"
    elif execution in REPLAYING or not dispatches:
        why = "it does not dispatch one operator after another"
    else:
        return
    raise ExecutionUnavailable(f"--llmperf-counted: execution {execution!r} is not counted: {why}")
