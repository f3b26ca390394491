"""A baseline's cells over time: their levels, where these changed, and which changes were accepted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from statistics import geometric_mean

from pytest_llmperf.metrics import Metric
from pytest_llmperf.stats.change_points import FEWEST_POINTS, change_points
from pytest_llmperf.storage.maintenance import find_tests
from pytest_llmperf.storage.schema import Baseline, Epoch, Run, Workload
from pytest_llmperf.verdict.comparison import Comparison
from pytest_llmperf.verdict.model import Cell, number


@dataclass(frozen=True, kw_only=True)
class Point:
    """The runs of one session at one commit: they share that session's luck, so they are one point.

    ``value`` is their geometric mean in the metric's unit, ``time`` that of the first of them.
    """

    time: str
    commit: str | None
    value: float
    runs: int


@dataclass(frozen=True, kw_only=True)
class Change:
    """One change of level: the last point before and the first after, both levels in the metric's unit."""

    last: Point
    first: Point
    before: float
    after: float
    accepted: str = ""
    """The reason of the epoch that lies between the two points."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """One cell over all runs that may be compared with the latest one, whatever was accepted in between."""

    cell: Cell
    workload: Workload
    points: Sequence[Point]
    epochs: Sequence[Epoch]

    @property
    def is_long_enough(self) -> bool:
        """Whether change points can be looked for at all."""
        return len(self.points) >= FEWEST_POINTS

    @cached_property
    def levels(self) -> list[tuple[Sequence[Point], float]]:
        """Each stretch of points with its geometric mean.

        Raises:
            MissingDependency: ruptures is not installed.
        """
        starts = [0, *change_points([math.log(point.value) for point in self.points]), len(self.points)]
        stretches = [self.points[start:end] for start, end in pairwise(starts)]
        return [(stretch, geometric_mean([point.value for point in stretch])) for stretch in stretches]

    @property
    def changes(self) -> list[Change]:
        """The changes of level, oldest first.

        Raises:
            MissingDependency: ruptures is not installed.
        """
        return [
            Change(last=old[-1], first=new[0], before=before, after=after, accepted=self._reason(old[-1], new[0]))
            for (old, before), (new, after) in pairwise(self.levels)
        ]

    def _reason(self, last: Point, first: Point) -> str:
        return next((epoch.reason for epoch in self.epochs if last.time <= epoch.time <= first.time), "")


def series_of(
    baseline: Baseline, *, test: str | None = None, metric: Metric | None = None, every_metric: bool = False
) -> list[Series]:
    """The series of a baseline's cells: of those that gate by default, of one metric, or of every one that is judged.

    Cells without a positive figure in each run (digests, or a count of 0) have no levels and are left out.

    Raises:
        UsageError: there is no such test.
    """
    tests = find_tests(baseline, test) if test else None
    if not baseline.runs:
        return []
    latest = max(baseline.runs, key=lambda run: run.time)
    cells = Comparison(baseline.model_copy(update={"epochs": []}), latest.environment).stored_cells
    return [
        Series(
            cell=cell,
            workload=baseline.workloads[workload],
            points=_points(baseline, cell),
            epochs=_epochs(baseline, cell),
        )
        for (_, workload, _), cell in cells.items()
        if (tests is None or cell.test in tests)
        and (cell.metric == metric if metric else every_metric or cell.limit.gates)
        and _has_levels(cell)
    ]


def _has_levels(cell: Cell) -> bool:
    return bool(cell.window) and all(not isinstance(s.value, str) and s.value > 0 for s in cell.window)


def _points(baseline: Baseline, cell: Cell) -> list[Point]:
    runs = {run.run_id: run for run in baseline.runs}
    groups: dict[tuple[str, str | None], list[tuple[Run, float]]] = {}
    for sample in cell.window:
        run = runs[sample.run_id]
        groups.setdefault((run.session_id, run.commit), []).append((run, number(sample.value)))
    return [
        Point(
            time=group[0][0].time, commit=commit, value=geometric_mean([value for _, value in group]), runs=len(group)
        )
        for (_, commit), group in groups.items()
    ]


def _epochs(baseline: Baseline, cell: Cell) -> list[Epoch]:
    found = [epoch for epoch in baseline.epochs if (epoch.test, epoch.metric) == (cell.test, cell.metric.key)]
    return sorted(found, key=lambda epoch: epoch.time)
