"""The window of runs that a baseline holds: joining, appending and trimming."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import TypeVar

from pydantic import BaseModel

from pytest_llmperf.errors import BaselineError
from pytest_llmperf.records.schema import Baseline, Run

WINDOW_RUNS = 20
SESSION_RUNS = 2

_Row = TypeVar("_Row", bound=BaseModel)


def merge(first: Baseline, second: Baseline) -> Baseline:
    """The union of two baselines of one device by run id: in any order, any number of times, the same result.

    Raises:
        BaselineError: they are of different devices, or hold different records under one key.
    """
    if first.device_key != second.device_key:
        raise BaselineError(
            f"cannot merge baselines of two devices: {first.device_key!r} and {second.device_key!r}. "
            "Keep one file a device"
        )
    return Baseline(
        device_key=first.device_key,
        runs=_union((*first.runs, *second.runs), lambda run: run.run_id),
        workloads={**first.workloads, **second.workloads},
        observations=_union((*first.observations, *second.observations), lambda row: (row.run, row.test, row.workload)),
        cells=_union((*first.cells, *second.cells), lambda cell: cell.key),
        epochs=_union((*first.epochs, *second.epochs), lambda epoch: (epoch.test, epoch.metric, epoch.time)),
    )


def only_new_cells(baseline: Baseline, addition: Baseline) -> Baseline:
    """The part of ``addition`` whose cells (test, workload, metric) the baseline does not hold yet."""
    known = {cell.key[:3] for cell in baseline.cells}
    known_tests = {(cell.test, cell.workload) for cell in baseline.cells}
    return addition.model_copy(
        update={
            "cells": [cell for cell in addition.cells if cell.key[:3] not in known],
            "observations": [row for row in addition.observations if (row.test, row.workload) not in known_tests],
        }
    )


def trim(baseline: Baseline, *, runs: int = WINDOW_RUNS, per_session: int = SESSION_RUNS) -> Baseline:
    """The baseline with at most ``runs`` run records.

    Only when there are more, runs leave: first the oldest of sessions that have more than ``per_session``, because
    they tell least that is new, then the oldest of all.
    """
    kept = sorted(baseline.runs, key=_age)
    while len(kept) > runs:
        kept.remove(_most_dispensable(kept, per_session))
    if len(kept) == len(baseline.runs):
        return baseline
    return _restricted(baseline, kept)


def _age(run: Run) -> tuple[str, str]:
    return (run.time, run.run_id)


def _most_dispensable(runs: list[Run], per_session: int) -> Run:
    crowd = Counter(run.session_id for run in runs)
    return next((run for run in runs if crowd[run.session_id] > per_session), runs[0])


def _restricted(baseline: Baseline, runs: list[Run]) -> Baseline:
    ids = {run.run_id for run in runs}
    cells = [cell for cell in baseline.cells if cell.run in ids]
    observations = [row for row in baseline.observations if row.run in ids]
    used = {cell.workload for cell in cells} | {row.workload for row in observations}
    return baseline.model_copy(
        update={
            "runs": runs,
            "cells": cells,
            "observations": observations,
            "workloads": {name: workload for name, workload in baseline.workloads.items() if name in used},
        }
    )


def _union(rows: Iterable[_Row], key: Callable[[_Row], object]) -> list[_Row]:
    found: dict[object, _Row] = {}
    for row in rows:
        if found.setdefault(key(row), row) != row:
            raise BaselineError(f"cannot merge: two different records of {key(row)!r}")
    return list(found.values())
