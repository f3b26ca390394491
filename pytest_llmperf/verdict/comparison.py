"""Compare a run with a baseline: select the comparable runs and return a verdict for each cell."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from pytest_llmperf.metrics import METRICS, Kind, Limit, Metric, Scalar, is_counted
from pytest_llmperf.storage.comparability import (
    KIND,
    Difference,
    blocking,
    compare_environments,
    depends_on,
    is_portable,
)
from pytest_llmperf.storage.schema import Baseline, CellRun, Run, StoredWork, TestResult, Workload
from pytest_llmperf.text import some
from pytest_llmperf.verdict.judge import is_judged, judge
from pytest_llmperf.verdict.model import Cell, CellKey, Outcome, Sample, Verdict
from pytest_llmperf.verdict.prior import DEFAULT_PRIOR, Prior, prior_of
from pytest_llmperf.verdict.work_change import NOT_STORED, OTHER_ENVIRONMENT, BaseWork


@dataclass(frozen=True)
class Confirmed:
    """A cell's figures from confirmation runs, and the family size that its p-value is tested with."""

    values: tuple[float, ...] = ()
    family_size: int | None = None


LONGEST_LIST = 4


@dataclass(frozen=True)
class _Row:
    """A stored figure, its run, and whether it decides cells here if the environments allow it."""

    run: Run
    cell: CellRun
    decides: bool


@dataclass(frozen=True)
class Comparison:
    """Comparison of one run with the baselines of a folder; ``baseline`` is ``None`` if the device has none."""

    baseline: Baseline | None
    environment: Mapping[str, Scalar]
    family_size: int = 1
    """Number of cells that could fail this run."""
    others: Sequence[Baseline] = ()
    """Baselines of other devices: their counted figures decide too, where what these depend on is equal."""

    def verdicts(
        self,
        result: TestResult,
        limit: Callable[[Metric], Limit],
        confirmed: Callable[[CellKey], Confirmed] = lambda _key: Confirmed(),
    ) -> list[Verdict]:
        """Return a verdict for each judged cell of a test."""
        found = [
            self._verdict(cell, limit(METRICS[cell.metric]), result.workload, confirmed(cell.key[:3]))
            for cell in result.cells
            if is_judged(METRICS[cell.metric])
        ]
        wrong = result.observation.invalid
        return [_invalid(verdict, wrong) if wrong and _is_timed(verdict) else verdict for verdict in found]

    def could_fail(self, limits: Mapping[str, Callable[[Metric], Limit]]) -> int:
        """Count the gating timed cells that have comparable runs, in the tests that have limits."""
        return sum(
            test in limits and limits[test](METRICS[name]).gates
            for (test, _workload, name), cell in self.stored_cells.items()
            if cell.window and cell.metric.kind is Kind.TIMED
        )

    def missing(self, collected: set[str], would_find: Callable[[str], bool]) -> list[str]:
        """Return the tests of the baseline that were not collected although this run would have found them."""
        return sorted(filter(would_find, self._tests - collected))

    def all_differences(self) -> list[Difference]:
        """Return all differences between this machine and the baseline's latest run, also those that do not block."""
        if self.baseline is None or not self.baseline.runs:
            return []
        return compare_environments(self.baseline.runs[-1].environment, self.environment)

    def latest_run(self, verdict: Verdict) -> Run | None:
        """Return the latest run that a verdict's figure was compared with."""
        window = verdict.cell.window
        return self._run_of.get(window[-1].run_id) if window else None

    def slowest_s(self, test: str) -> float | None:
        """Return the longest time that a comparable run took for a test, in seconds."""
        seen, runs = (self.baseline.observations, self.baseline.runs) if self.baseline else ([], [])
        comparable = {run.run_id for run in runs if not blocking(self._against(run))}
        return max(
            (one.elapsed_s for one in seen if one.test == test and one.run in comparable and one.elapsed_s is not None),
            default=None,
        )

    def stored_work(self, result: TestResult) -> BaseWork:
        """Return the baseline's counted work of a result's workload, of its latest run with comparable counts."""
        key = (result.observation.test, result.workload.hash)
        fields = depends_on(METRICS["operators_per_token"], result.workload)
        rows = [pair for pair in self._work if pair[1].key[:2] == key]
        alike = [pair for pair in rows if not blocking(self._against(pair[0]), fields)]
        if not alike:
            return BaseWork("baseline", why_not=OTHER_ENVIRONMENT if rows else NOT_STORED)
        run, latest = max(alike, key=lambda pair: (pair[0].time, pair[0].run_id))
        return BaseWork(f"baseline of {run.commit[:12]}" if run.commit else "baseline", latest.phases)

    @cached_property
    def _work(self) -> list[tuple[Run, StoredWork]]:
        """The stored work of all baselines of this kind of device, each with its run."""
        return [(self._run_of[row.run], row) for baseline in self._baselines for row in baseline.work]

    @cached_property
    def _run_of(self) -> dict[str, Run]:
        return {run.run_id: run for baseline in self._baselines for run in baseline.runs}

    def _verdict(self, cell: CellRun, limit: Limit, workload: Workload, confirmed: Confirmed) -> Verdict:
        key = cell.key[:3]
        judged = Cell.of(key, limit, cell.value, self._window(key), reason=cell.reason)
        verdict = judge(
            judged,
            family_size=confirmed.family_size or self.family_size,
            prior=self.prior(judged.metric),
            confirmations=confirmed.values,
        )
        if judged.window or verdict.outcome is not Outcome.NEW:
            return verdict
        return self._why_not_comparable(verdict, cell, workload)

    def _why_not_comparable(self, verdict: Verdict, cell: CellRun, workload: Workload) -> Verdict:
        """Mark a new cell as not comparable if a baseline has it in another workload, environment or epoch."""
        stored = self._workloads_of.get((cell.test, cell.metric))
        if cell.value is None or not stored:
            return verdict
        if workload.hash not in stored:
            nearest = min((workload.differences(self._workloads[name]) for name in sorted(stored)), key=len)
            reason = "workload " + ", ".join(nearest)
        else:
            reason = self._why_no_run(cell.key[:3], depends_on(verdict.cell.metric, workload))
        return replace(verdict, outcome=Outcome.NOT_COMPARABLE, reason=reason) if reason else verdict

    def _why_no_run(self, key: CellKey, fields: frozenset[str]) -> str:
        """Return what keeps a cell's nearest run from being compared: of those that differ least, the latest."""
        measured = (row for row in self._rows[key] if row.cell.value is not None)
        rows = sorted(measured, key=lambda row: row.run.time, reverse=True)
        found = [blocking(self._against(row.run), fields) for row in rows]
        if any(row.decides and not differences for row, differences in zip(rows, found, strict=True)):
            return "an accepted change: no run since then"
        nearest = [str(difference) for difference in min(filter(None, found), key=len, default=[])]
        return f"environment {some(nearest, LONGEST_LIST)}" if nearest else ""

    def _window(self, key: CellKey) -> list[Sample]:
        if key not in self._rows:
            return []
        since, fields = self._epochs.get((key[0], key[2]), ""), depends_on(METRICS[key[2]], self._workloads[key[1]])
        rows = [
            (row.run, row.cell.value)
            for row in self._rows[key]
            if row.decides and row.run.time > since and not blocking(self._against(row.run), fields)
        ]
        rows.sort(key=lambda row: (row[0].time, row[0].run_id))
        return [
            Sample(run_id=run.run_id, session_id=run.session_id, value=value)
            for run, value in rows
            if value is not None
        ]

    def _against(self, run: Run) -> list[Difference]:
        """Return the differences between a stored run's environment and this one's."""
        if run.run_id not in self._compared:
            self._compared[run.run_id] = compare_environments(run.environment, self.environment)
        return self._compared[run.run_id]

    @cached_property
    def _compared(self) -> dict[str, list[Difference]]:
        return {}

    @cached_property
    def _kin(self) -> list[Baseline]:
        """The other baselines of this kind of device."""
        return [other for other in self.others if not any(blocking(self._against(run), KIND) for run in other.runs)]

    @property
    def _baselines(self) -> list[Baseline]:
        return [*([self.baseline] if self.baseline else []), *self._kin]

    @cached_property
    def _workloads(self) -> dict[str, Workload]:
        return {name: workload for one in self._baselines for name, workload in one.workloads.items()}

    @cached_property
    def _rows(self) -> dict[CellKey, list[_Row]]:
        """The valid stored figures of each cell. Times of other machines decide nothing and explain why."""
        found: defaultdict[CellKey, list[_Row]] = defaultdict(list)
        for baseline in self._baselines:
            for row in self._rows_of(baseline):
                found[row.cell.test, row.cell.workload, row.cell.metric].append(row)
        return dict(found)

    def _rows_of(self, baseline: Baseline) -> Iterator[_Row]:
        runs, invalid = {run.run_id: run for run in baseline.runs}, baseline.invalid_cells()
        for cell in baseline.cells:
            metric = METRICS.get(cell.metric)
            if metric and cell.key not in invalid:
                own = baseline is self.baseline
                decides = own or is_portable(metric, baseline.workloads[cell.workload])
                yield _Row(runs[cell.run], cell, decides)

    @cached_property
    def _workloads_of(self) -> dict[tuple[str, str], set[str]]:
        found: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
        for test, workload, metric in self._rows:
            found[test, metric].add(workload)
        return dict(found)

    @cached_property
    def _tests(self) -> set[str]:
        """The tests of this device's baseline."""
        if self.baseline is None:
            return set()
        invalid = self.baseline.invalid_cells()
        return {cell.test for cell in self.baseline.cells if cell.key not in invalid}

    @cached_property
    def _epochs(self) -> dict[tuple[str, str], str]:
        """Time of the latest epoch of each test and metric; those of counted metrics count wherever they are stored."""
        own = self.baseline.epochs if self.baseline else []
        shared = [epoch for other in self._kin for epoch in other.epochs if is_counted(epoch.metric)]
        latest: dict[tuple[str, str], str] = {}
        for epoch in (*own, *shared):
            key = (epoch.test, epoch.metric)
            latest[key] = max(latest.get(key, ""), epoch.time)
        return latest

    @cached_property
    def stored_cells(self) -> dict[CellKey, Cell]:
        """All judged cells that stored runs decide, each with its comparable window and its metric's default limit."""
        return {
            key: Cell.of(key, Limit.of(METRICS[key[2]]), None, self._window(key))
            for key, rows in self._rows.items()
            if is_judged(METRICS[key[2]]) and any(row.decides for row in rows)
        }

    def prior(self, metric: Metric) -> Prior:
        """Return the prior variance of a metric, estimated from the windows of all its cells."""
        return self._priors.get(metric.key, DEFAULT_PRIOR)

    @cached_property
    def _priors(self) -> dict[str, Prior]:
        families: defaultdict[str, list[Cell]] = defaultdict(list)
        for cell in self.stored_cells.values():
            if cell.metric.kind is not Kind.IDENTITY:
                families[cell.metric.key].append(cell)
        return {name: prior_of(cells) for name, cells in families.items()}


def _is_timed(verdict: Verdict) -> bool:
    """Return whether the verdict is on a measured value of a timed metric."""
    return verdict.cell.metric.kind is Kind.TIMED and verdict.cell.value is not None


def _invalid(verdict: Verdict, reason: str) -> Verdict:
    return replace(
        verdict, outcome=Outcome.INVALID, reason=reason, ratio=None, interval=None, p_value=None, flagged=False
    )
