"""Lookup of executions by name."""

from __future__ import annotations

import pytest

from pytest_llmperf.engines.executions.execution_registry import find_execution
from pytest_llmperf.errors import UsageError


def test_executions_have_names():
    """An unknown name is refused with the known ones."""
    assert find_execution("loop")
    with pytest.raises(UsageError, match="expected one of generate, loop"):
        find_execution("warp")
