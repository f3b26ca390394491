"""Explain an exact change by the stored counted work: the work of one phase on both sides, without a profiler."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import fsum

from pydantic import ConfigDict

from pytest_llmperf.storage.baseline_file import Written
from pytest_llmperf.storage.schema import PhaseWork, StepCounts, TestResult
from pytest_llmperf.verdict.model import Outcome, Verdict
from pytest_llmperf.verdict.time_change import OF_DECODE, OF_PREFILL, Phase

COUNTED_METRICS: Mapping[Phase, Mapping[str, str]] = {
    "prefill": {
        "prefill_operators": "operators",
        "prefill_flops": "flops",
        "prefill_moved_bytes": "bytes",
        "prefill_allocations": "allocations",
        "prefill_allocated_bytes": "allocated_bytes",
    },
    "decode": {
        "operators_per_token": "operators",
        "flops_per_token": "flops",
        "moved_bytes_per_token": "bytes",
        "allocations_per_token": "allocations",
        "allocated_bytes_per_token": "allocated_bytes",
        "operators_growth": "operators",
        "flops_growth": "flops",
        "moved_bytes_growth": "bytes",
    },
}
"""Metrics that are counted in a phase, each with the name of its total in `StepCounts`."""
TIMED: Mapping[Phase, frozenset[str]] = {"prefill": OF_PREFILL, "decode": OF_DECODE}
FOLLOWING: Mapping[Phase, frozenset[str]] = {
    "prefill": frozenset({"prefill_peak_allocated_bytes"}),
    "decode": frozenset({"decode_peak_allocated_bytes", "kernel_launches_per_token", "syncs_per_token"}),
}
"""Exact metrics that other work may explain."""

NOT_STORED = "it has no counted work of this workload; recording a run stores it"
OTHER_ENVIRONMENT = "its counted work is of another kind of device or other versions"


class CountChange(Written):
    """One count on both sides, per step."""

    model_config = ConfigDict(allow_inf_nan=False)

    name: str
    before: float
    after: float

    @property
    def difference(self) -> float:
        """Increase of the count."""
        return self.after - self.before

    @property
    def ratio(self) -> float | None:
        """After / before; ``None`` if it was 0."""
        return self.after / self.before if self.before else None


class WorkChange(Written):
    """Counted work of one phase on both sides, or the ``reason`` why the base's is unknown.

    Counts are per token (decode) or per request (prefill). Lists hold only counts that differ, the largest change
    first.
    """

    workload: str
    phase: Phase
    base: str = ""
    """Name of the side compared with."""
    against: str = ""
    """Git revision of the baseline compared with; empty for the present baseline."""
    totals: tuple[CountChange, ...] = ()
    """Operators, FLOPs, bytes, allocations and allocated bytes, also those that are equal."""
    operators: tuple[CountChange, ...] = ()
    """Calls by operator."""
    flops: tuple[CountChange, ...] = ()
    """FLOPs by dtype."""
    bytes: tuple[CountChange, ...] = ()
    """Bytes read and written, by dtype."""
    growth: tuple[CountChange, ...] = ()
    """Growth of the totals from step to step: (last step - first step) / (steps - 1)."""
    without_formula: tuple[str, ...] = ()
    """Operators of either side that compute and whose FLOPs are not known."""
    reason: str = ""

    @property
    def is_equal(self) -> bool:
        """Whether both sides do the same work."""
        lists = (self.operators, self.flops, self.bytes, self.growth)
        return not (self.reason or any(lists) or any(one.difference for one in self.totals))

    @property
    def differs(self) -> bool:
        """Whether both sides are known, and do other work."""
        return not (self.reason or self.is_equal)

    def total(self, name: str) -> CountChange:
        """Return a total by its name in `StepCounts`; zeros if the base's is unknown."""
        unknown = CountChange(name=name, before=0.0, after=0.0)
        return next((one for one in self.totals if one.name == name), unknown)

    def grown(self, name: str) -> CountChange | None:
        """Return the growth of a total by its name; ``None`` if it is equal on both sides."""
        return next((one for one in self.growth if one.name == name), None)


@dataclass(frozen=True)
class BaseWork:
    """Counted work of one workload on the base's side, by phase; ``why_not`` explains a missing phase."""

    name: str
    phases: Mapping[str, PhaseWork] = field(default_factory=dict)
    why_not: str = NOT_STORED


def work_changes(result: TestResult, base: BaseWork, *, against: str = "") -> list[WorkChange]:
    """Compare each phase of which this result has counted work.

    Args:
        result: of this run.
        base: of the same workload.
        against: git revision of the base, if it is an anchor.
    """
    return [_phase_change(result, phase, base, against) for phase in COUNTED_METRICS if phase in result.work]


def telling(changes: Sequence[WorkChange], verdicts: Sequence[Verdict]) -> list[WorkChange]:
    """Return the changes that explain a verdict of the same test.

    Those are changes and regressions of gating counted metrics, and timed regressions, for which equal work is telling
    too. Regressions of memory, kernels and synchronizations are explained if the work differs. A change since an anchor
    is left out if it is the same as that since the present baseline.
    """
    found = [change for change in changes if any(_explains(change, verdict) for verdict in verdicts)]
    return [change for change in found if not change.against or change.model_copy(update={"against": ""}) not in found]


def work_change(  # noqa: PLR0913  # two sides, and what they are
    before: PhaseWork, after: PhaseWork, *, workload: str, phase: Phase, base: str = "", against: str = ""
) -> WorkChange:
    """Compare the counted work of one phase."""
    growths = (_growth(side) for side in (before, after))
    return WorkChange(
        workload=workload,
        phase=phase,
        base=base,
        against=against,
        totals=tuple(_counts(_totals(before), _totals(after))),
        operators=_changed(before.operators, after.operators),
        flops=_changed(before.flops, after.flops),
        bytes=_changed(before.bytes, after.bytes),
        growth=_changed(*growths),
        without_formula=tuple(sorted({*before.without_formula, *after.without_formula})),
    )


def _phase_change(result: TestResult, phase: Phase, base: BaseWork, against: str) -> WorkChange:
    workload = result.workload.hash
    if (before := base.phases.get(phase)) is None:
        reason = f"{base.name}: {base.why_not}"
        return WorkChange(workload=workload, phase=phase, base=base.name, against=against, reason=reason)
    return work_change(before, result.work[phase], workload=workload, phase=phase, base=base.name, against=against)


def _explains(change: WorkChange, verdict: Verdict) -> bool:
    cell = verdict.cell
    if (cell.workload, verdict.against) != (change.workload, change.against):
        return False
    if cell.metric.key in COUNTED_METRICS[change.phase]:
        return cell.limit.gates and verdict.outcome in (Outcome.REGRESSED, Outcome.IMPROVED)
    if cell.metric.key in TIMED[change.phase]:
        return verdict.fails
    return verdict.fails and cell.metric.key in FOLLOWING[change.phase] and change.differs


def _totals(work: PhaseWork) -> dict[str, float]:
    return {
        "operators": fsum(work.operators.values()),  # fsum's result does not depend on the order
        "flops": fsum(work.flops.values()),
        "bytes": fsum(work.bytes.values()),
        "allocations": work.allocations,
        "allocated_bytes": work.allocated_bytes,
    }


def _growth(work: PhaseWork) -> dict[str, float]:
    """Return how much each total grows from step to step."""
    first, last = work.first.model_dump(), work.last.model_dump()
    gaps = max(1, work.steps - 1)
    return {name: (last[name] - first[name]) / gaps for name in StepCounts.model_fields}


def _changed(before: Mapping[str, float], after: Mapping[str, float]) -> tuple[CountChange, ...]:
    """Return the counts that differ, the largest change first."""
    found = [one for one in _counts(before, after) if one.difference]
    return tuple(sorted(found, key=lambda one: (-abs(one.difference), one.name)))


def _counts(before: Mapping[str, float], after: Mapping[str, float]) -> Iterator[CountChange]:
    for name in {**before, **after}:
        yield CountChange(name=name, before=before.get(name, 0.0), after=after.get(name, 0.0))
