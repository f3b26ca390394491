"""Judge deterministic metrics: counters, deterministic memory and digests.

Identical runs give identical figures, so no significance test is needed. The limit is the window's worst value plus a
slack.
"""

from __future__ import annotations

from pytest_llmperf.metrics import Kind
from pytest_llmperf.verdict.model import Cell, Outcome, Verdict, number


def judge_exact(cell: Cell) -> Verdict:
    """Return the verdict on an exact cell: regressed if beyond the window's worst value by more than the slack.

    It improved if it is beyond the window's best value by more than the slack. The slack is the larger of the limit's
    ``floor`` (in the metric's unit) and ``tolerate`` times the worst value.

    Raises:
        TypeError: a value of the cell is not a number.
        ValueError: the window is empty.
    """
    value, worst = number(cell.value), worst_figure(cell)
    return Verdict(
        cell=cell,
        outcome=_compare(cell),
        kind=Kind.EXACT,
        baseline=worst,
        ratio=value / worst if worst > 0 else None,
        limit_ratio=limit_value(cell) / worst if worst > 0 else None,
        runs=len(cell.window),
        sessions=cell.sessions,
    )


def judge_identity(cell: Cell) -> Verdict:
    """Return the verdict on a text: unchanged if equal to every value of the window, else regressed.

    A window of several different values makes the verdict inconclusive.

    Raises:
        ValueError: the window is empty.
    """
    known = {sample.value for sample in cell.window}
    if not known:
        raise ValueError("the window is empty")
    outcome, reason = Outcome.REGRESSED, ""
    if known == {cell.value}:
        outcome = Outcome.UNCHANGED
    elif len(known) > 1:
        outcome, reason = Outcome.INCONCLUSIVE, f"not deterministic: the baseline holds {len(known)} different values"
    return Verdict(
        cell=cell,
        outcome=outcome,
        kind=Kind.IDENTITY,
        reason=reason,
        baseline=cell.window[-1].value if len(known) == 1 else None,
        runs=len(cell.window),
        sessions=cell.sessions,
    )


def varies(cell: Cell) -> bool:
    """Return whether the window's runs differ by more than the slack, so that the metric is not deterministic."""
    return max(cell.figures) - min(cell.figures) > _slack(cell)


def worst_figure(cell: Cell) -> float:
    """Return the window's largest value if smaller is better, else its smallest."""
    sign = cell.metric.better.sign
    return sign * max(sign * figure for figure in cell.figures)


def limit_value(cell: Cell) -> float:
    """Return the value, in the metric's unit, beyond which an exact metric has regressed."""
    return worst_figure(cell) + cell.metric.better.sign * _slack(cell)


def _slack(cell: Cell) -> float:
    return max(cell.limit.floor, cell.limit.tolerate * abs(worst_figure(cell)))


def _compare(cell: Cell) -> Outcome:
    sign = cell.metric.better.sign
    value = sign * number(cell.value)
    if value > sign * limit_value(cell):
        return Outcome.REGRESSED
    if value < min(sign * figure for figure in cell.figures) - _slack(cell):
        return Outcome.IMPROVED
    return Outcome.UNCHANGED
