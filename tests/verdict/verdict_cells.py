"""Helpers that make cells for the tests of this folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pytest_llmperf.metrics import METRICS, Limit
from pytest_llmperf.verdict.model import Cell, Sample

MIB = 1024**2


def make_cell(value: Any, *sessions: Sequence[Any], metric: str = "tpot_ms", reason: str = "", **limit: Any) -> Cell:
    """Return a cell whose window holds ``sessions``, each a sequence of runs; ``limit`` overrides its limit."""
    defined = METRICS[metric]
    window = [
        Sample(run_id=f"run-{i}-{j}", session_id=f"session-{i}", value=figure)
        for i, session in enumerate(sessions)
        for j, figure in enumerate(session)
    ]
    limits = replace(Limit.of(defined), **limit)
    return Cell(test="test_decode", metric=defined, limit=limits, value=value, window=window, reason=reason)
