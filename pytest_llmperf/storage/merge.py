"""Merge baselines, and trim a baseline to its window of runs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from pydantic import BaseModel

from pytest_llmperf.errors import BaselineError
from pytest_llmperf.metrics import METRICS, Scalar
from pytest_llmperf.storage.comparability import BLOCKING, counted_key, values_of
from pytest_llmperf.storage.schema import Baseline, CellRun, Run

WINDOW_RUNS = 20
SESSION_RUNS = 2
ENVIRONMENTS = 6
"""Environments of a test that have a window each, such as those of two versions of torch with three of Python."""

_Row = TypeVar("_Row", bound=BaseModel)


def merge(first: Baseline, second: Baseline) -> Baseline:
    """Return the union of two baselines of one device by run id; the result does not depend on order or repetition.

    Raises:
        BaselineError: they are of different devices, or hold different records under one key.
    """
    if first.device_key != second.device_key:
        raise BaselineError(
            f"cannot merge baselines of two devices: {first.device_key!r} and {second.device_key!r}. "
            "Keep one file per device"
        )
    return Baseline(
        device_key=first.device_key,
        runs=_union((*first.runs, *second.runs), lambda run: run.run_id),
        workloads={**first.workloads, **second.workloads},
        observations=_union((*first.observations, *second.observations), lambda row: (row.run, row.test, row.workload)),
        cells=_union((*first.cells, *second.cells), lambda cell: cell.key),
        work=_union((*first.work, *second.work), lambda work: work.key),
        epochs=_union((*first.epochs, *second.epochs), lambda epoch: epoch),
    )


def only_new_cells(baseline: Baseline, addition: Baseline) -> Baseline:
    """Return the part of ``addition`` whose cells (test, workload, metric) the baseline does not have."""
    known = {cell.key[:3] for cell in baseline.cells}
    known_tests = {(cell.test, cell.workload) for cell in baseline.cells}
    return addition.model_copy(
        update={
            "cells": [cell for cell in addition.cells if cell.key[:3] not in known],
            "observations": [row for row in addition.observations if (row.test, row.workload) not in known_tests],
            "work": [row for row in addition.work if (row.test, row.workload) not in known_tests],
        }
    )


def trim(baseline: Baseline, *, runs: int = WINDOW_RUNS, per_session: int = SESSION_RUNS) -> Baseline:
    """Return the baseline with at most ``runs`` runs of each test in each of its latest environments.

    Each test has its own window, so recording one test again does not remove the others' history. So has each
    environment, because runs of two versions of torch are not compared. If a window has more runs, the oldest runs of
    sessions with more than ``per_session`` runs are removed first, since they add the least information. Then the
    oldest runs of all are removed. Counted work is kept of the latest run of each workload, for each environment in
    which it may differ.
    """
    baseline = _with_latest_work(baseline)
    of_test: defaultdict[str, set[str]] = defaultdict(set)
    metrics: defaultdict[str, set[str]] = defaultdict(set)
    for cell in baseline.cells:
        of_test[cell.test].add(cell.run)
        metrics[cell.test].add(cell.metric)
    by_age = sorted(baseline.runs, key=lambda run: (run.time, run.run_id))
    dispensable = {
        (test, run)
        for test, ids in of_test.items()
        for window in _windows([run for run in by_age if run.run_id in ids], _fields(metrics[test]))
        for run in _dispensable(window, runs, per_session)
    }
    if not dispensable:
        return baseline
    return with_cells(baseline, [cell for cell in baseline.cells if (cell.test, cell.run) not in dispensable])


def with_cells(baseline: Baseline, cells: list[CellRun]) -> Baseline:
    """Return the baseline with only these cells, and the runs, observations and workloads that belong to them."""
    held = {(cell.run, cell.test, cell.workload) for cell in cells}
    runs, workloads = ({key[part] for key in held} for part in (0, 2))
    return baseline.model_copy(
        update={
            "runs": [run for run in baseline.runs if run.run_id in runs],
            "cells": cells,
            "work": [row for row in baseline.work if (row.run, row.test, row.workload) in held],
            "observations": [row for row in baseline.observations if (row.run, row.test, row.workload) in held],
            "workloads": {name: workload for name, workload in baseline.workloads.items() if name in workloads},
        }
    )


def _with_latest_work(baseline: Baseline) -> Baseline:
    runs = {run.run_id: run for run in baseline.runs}
    by_age = sorted(baseline.work, key=lambda row: (runs[row.run].time, row.run))
    latest = {(row.test, row.workload, counted_key(runs[row.run].environment)): row for row in by_age}
    if len(latest) == len(by_age):
        return baseline
    return baseline.model_copy(update={"work": list(latest.values())})


def _fields(metrics: Iterable[str]) -> frozenset[str]:
    """Return the fields of the environment in which runs with these metrics must be equal to be compared."""
    found: frozenset[str] = frozenset()
    for name in metrics:
        needed = METRICS[name].depends_on if name in METRICS else None
        found |= BLOCKING if needed is None else needed
    return found


def _windows(by_age: list[Run], fields: frozenset[str]) -> Iterator[list[Run]]:
    """Yield the runs of each of the latest environments, and last those of all others."""
    groups: defaultdict[tuple[Scalar, ...], list[Run]] = defaultdict(list)
    for run in reversed(by_age):
        groups[values_of(run.environment, fields)].append(run)
    windows = [group[::-1] for group in groups.values()]
    older = {run.run_id for window in windows[ENVIRONMENTS:] for run in window}
    yield from windows[:ENVIRONMENTS]
    yield [run for run in by_age if run.run_id in older]


def _dispensable(runs: list[Run], most: int, per_session: int) -> list[str]:
    """Return the ids of the runs to remove; ``runs`` are ordered by age."""
    kept, leaving = list(runs), []
    while len(kept) > most:
        crowd = Counter(run.session_id for run in kept)
        leaver = next((run for run in kept if crowd[run.session_id] > per_session), kept[0])
        kept.remove(leaver)
        leaving.append(leaver.run_id)
    return leaving


def _union(rows: Iterable[_Row], key: Callable[[_Row], object]) -> list[_Row]:
    found: dict[object, _Row] = {}
    for row in rows:
        if found.setdefault(key(row), row) != row:
            raise BaselineError(f"cannot merge: two different records of {key(row)!r}")
    return list(found.values())
