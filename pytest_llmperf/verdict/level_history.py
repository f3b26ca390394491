"""History of a baseline's cells: levels, change points and accepted changes."""

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
    """One point of a history: the runs of one session at one commit, which are correlated.

    ``value`` is their geometric mean in the metric's unit; ``time`` is the start of the first run.
    """

    time: str
    commit: str | None
    value: float
    runs: int


@dataclass(frozen=True, kw_only=True)
class Change:
    """A change of level: the last point before, the first point after, and both levels in the metric's unit."""

    last: Point
    first: Point
    before: float
    after: float
    accepted: str = ""
    """Reason of the epoch between the two points."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """History of one cell: all runs comparable with the latest one, ignoring epochs."""

    cell: Cell
    workload: Workload
    points: Sequence[Point]
    epochs: Sequence[Epoch]

    @property
    def is_long_enough(self) -> bool:
        """Whether there are enough points to search for change points."""
        return len(self.points) >= FEWEST_POINTS

    @cached_property
    def levels(self) -> list[tuple[Sequence[Point], float]]:
        """Each segment between change points, with its geometric mean.

        Raises:
            MissingDependency: ruptures is not installed.
        """
        starts = [0, *change_points([math.log(point.value) for point in self.points]), len(self.points)]
        stretches = [self.points[start:end] for start, end in pairwise(starts)]
        return [(stretch, geometric_mean([point.value for point in stretch])) for stretch in stretches]

    @property
    def changes(self) -> list[Change]:
        """Changes of level, oldest first.

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
    """Return the histories of a baseline's cells: those that gate by default, of one metric, or all judged.

    Cells that lack a positive number in any run (digests, or a count of 0) are omitted.

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
