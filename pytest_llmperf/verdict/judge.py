"""Judge one cell: choose the rule by the metric's kind and return a verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pytest_llmperf.metrics import Kind, Metric
from pytest_llmperf.verdict.exact import judge_exact, judge_identity, varies
from pytest_llmperf.verdict.model import Cell, Outcome, Verdict
from pytest_llmperf.verdict.prior import DEFAULT_PRIOR, Prior
from pytest_llmperf.verdict.screen import judge_timed


def is_judged(metric: Metric) -> bool:
    """Return whether cells of a metric get a verdict."""
    return metric.kind is not Kind.INFORMATIVE


def judge(
    cell: Cell, *, family_size: int = 1, prior: Prior = DEFAULT_PRIOR, confirmations: Sequence[float] = ()
) -> Verdict:
    """Return the verdict on one cell.

    Args:
        cell: this run's figure and the runs it is compared with.
        family_size: number of cells that could fail this run.
        prior: prior variance of the metric (timed metrics only).
        confirmations: the same figure from fresh runs in this session (timed metrics only).

    Raises:
        ValueError: the metric is informative, or ``family_size`` is below 1.
    """
    if not is_judged(cell.metric):
        raise ValueError(f"{cell.metric.key} is informative and never judged: ask is_judged first")
    if family_size < 1:
        raise ValueError(f"family_size is {family_size}: expected 1 or more")
    if cell.value is None:
        return _unmeasured(cell)
    if wrong := _first_problem(cell, confirmations):
        return _undecided(cell, Outcome.INVALID, wrong)
    if not cell.window:
        return _undecided(cell, Outcome.NEW, "no baseline to compare with")
    if cell.metric.kind is Kind.IDENTITY:
        return judge_identity(cell)
    if cell.metric.kind is Kind.EXACT and not varies(cell):
        return judge_exact(cell)
    return judge_timed(cell, family_size=family_size, prior=prior, confirmations=confirmations)


def _unmeasured(cell: Cell) -> Verdict:
    if cell.window:
        return _undecided(cell, Outcome.MISSING, cell.reason)
    return _undecided(cell, Outcome.NEW, f"not measured: {cell.reason or 'no reason was given'}")


def _undecided(cell: Cell, outcome: Outcome, reason: str) -> Verdict:
    return Verdict(
        cell=cell,
        outcome=outcome,
        kind=cell.metric.kind,
        reason=reason,
        runs=len(cell.window),
        sessions=cell.sessions,
    )


def _first_problem(cell: Cell, confirmations: Sequence[float]) -> str:
    """Return why a value of the cell is invalid; empty if all are valid."""
    named = [("", value) for value in (cell.value, *confirmations)]
    named += [(f" in the baseline's run {sample.run_id}", sample.value) for sample in cell.window]
    for where, value in named:
        if wrong := problem(cell.metric.kind, value):
            return wrong + where
    return ""


def problem(kind: Kind, value: object) -> str:
    """Return why a value is invalid for a kind of metric; empty if it is valid."""
    if kind is Kind.IDENTITY:
        return "" if isinstance(value, str) else f"expected a text, got {value!r}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"expected a number, got {value!r}"
    if not math.isfinite(value):
        return f"expected a finite number, got {value!r}"
    if value < 0 or (value == 0 and kind is Kind.TIMED):
        return f"expected a number {'> 0' if kind is Kind.TIMED else '>= 0'}, got {value!r}"
    return ""
