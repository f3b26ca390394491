"""Compare a run with a baseline: select the comparable runs and return a verdict for each cell."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from pytest_llmperf.metrics import METRICS, Kind, Limit, Metric, Scalar
from pytest_llmperf.storage.comparability import Difference, blocking, compare_environments, counted_key
from pytest_llmperf.storage.schema import Baseline, CellRun, Run, TestResult, Workload
from pytest_llmperf.verdict.judge import is_judged, judge
from pytest_llmperf.verdict.model import Cell, CellKey, Outcome, Sample, Verdict
from pytest_llmperf.verdict.prior import DEFAULT_PRIOR, Prior, prior_of
from pytest_llmperf.verdict.work_change import NOT_STORED, OTHER_ENVIRONMENT, BaseWork


@dataclass(frozen=True)
class Confirmed:
    """A cell's figures from confirmation runs, and the family size that its p-value is tested with."""

    values: tuple[float, ...] = ()
    family_size: int | None = None


@dataclass(frozen=True)
class Comparison:
    """Comparison of one run with one baseline; ``baseline`` is ``None`` if the device has none."""

    baseline: Baseline | None
    environment: Mapping[str, Scalar]
    family_size: int = 1
    """Number of cells that could fail this run."""

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

    def differences(self) -> list[Difference]:
        """Return how this machine differs from the latest run in blocking fields, if no run is comparable."""
        if self.baseline is None or self._comparable or not self.baseline.runs:
            return []
        return blocking(compare_environments(self.baseline.runs[-1].environment, self.environment))

    def all_differences(self) -> list[Difference]:
        """Return all differences between this machine and the baseline's latest run, also those that do not block."""
        if self.baseline is None or not self.baseline.runs:
            return []
        return compare_environments(self.baseline.runs[-1].environment, self.environment)

    def slowest_s(self, test: str) -> float | None:
        """Return the longest time that a comparable run took for a test, in seconds."""
        seen = self.baseline.observations if self.baseline else []
        return max(
            (
                one.elapsed_s
                for one in seen
                if one.test == test and one.run in self._comparable and one.elapsed_s is not None
            ),
            default=None,
        )

    def stored_work(self, result: TestResult) -> BaseWork:
        """Return the baseline's counted work of a result's workload, of its latest run with comparable counts."""
        key, runs = (result.observation.test, result.workload.hash), self.baseline.runs if self.baseline else []
        run_of, now = {run.run_id: run for run in runs}, counted_key(self.environment)
        rows = [row for row in (self.baseline.work if self.baseline else ()) if row.key[:2] == key]
        alike = [(run_of[row.run], row) for row in rows if counted_key(run_of[row.run].environment) == now]
        if not alike:
            return BaseWork("baseline", why_not=OTHER_ENVIRONMENT if rows else NOT_STORED)
        run, latest = max(alike, key=lambda pair: (pair[0].time, pair[0].run_id))
        return BaseWork(f"baseline of {run.commit[:12]}" if run.commit else "baseline", latest.phases)

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
        """Mark a new cell as not comparable if the baseline has it in another workload, environment or epoch."""
        stored = self._workloads_of.get((cell.test, cell.metric))
        if cell.value is None or not stored:
            return verdict
        if workload.hash in stored:
            found = self.differences()
            reason = "environment " + ", ".join(map(str, found)) if found else "an accepted change: no run since then"
        else:
            nearest = min((workload.differences(self._workload(name)) for name in sorted(stored)), key=len)
            reason = "workload " + ", ".join(nearest)
        return replace(verdict, outcome=Outcome.NOT_COMPARABLE, reason=reason)

    def _window(self, key: CellKey) -> list[Sample]:
        since = self._epochs.get((key[0], key[2]), "")
        rows = [
            (run, cell.value)
            for cell in self._cells.get(key, ())
            if (run := self._comparable.get(cell.run)) and run.time > since
        ]
        rows.sort(key=lambda row: (row[0].time, row[0].run_id))
        return [
            Sample(run_id=run.run_id, session_id=run.session_id, value=value)
            for run, value in rows
            if value is not None
        ]

    def _workload(self, name: str) -> Workload:
        if self.baseline is None:
            raise LookupError(name)
        return self.baseline.workloads[name]

    @cached_property
    def _comparable(self) -> dict[str, Run]:
        runs = self.baseline.runs if self.baseline else []
        return {
            run.run_id: run for run in runs if not blocking(compare_environments(run.environment, self.environment))
        }

    @cached_property
    def _cells(self) -> dict[CellKey, list[CellRun]]:
        found: defaultdict[CellKey, list[CellRun]] = defaultdict(list)
        invalid = self.baseline.invalid_cells() if self.baseline else {}
        for cell in self.baseline.cells if self.baseline else ():
            if cell.key not in invalid:
                found[cell.test, cell.workload, cell.metric].append(cell)
        return dict(found)

    @cached_property
    def _workloads_of(self) -> dict[tuple[str, str], set[str]]:
        found: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
        for test, workload, metric in self._cells:
            found[test, metric].add(workload)
        return dict(found)

    @cached_property
    def _tests(self) -> set[str]:
        return {test for test, _, _ in self._cells}

    @cached_property
    def _epochs(self) -> dict[tuple[str, str], str]:
        """Time of the latest epoch of each test and metric."""
        latest: dict[tuple[str, str], str] = {}
        for epoch in self.baseline.epochs if self.baseline else ():
            key = (epoch.test, epoch.metric)
            latest[key] = max(latest.get(key, ""), epoch.time)
        return latest

    @cached_property
    def stored_cells(self) -> dict[CellKey, Cell]:
        """All judged cells of the baseline, each with its comparable window and its metric's default limit."""
        return {
            key: Cell.of(key, Limit.of(METRICS[key[2]]), None, self._window(key))
            for key in self._cells
            if key[2] in METRICS and is_judged(METRICS[key[2]])
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
