"""Why a test changed: counted work, then operators and kernels by time, then the commit; the most telling fact leads.

A cause's share tells how much of a slowdown it accounts for. Of counted work that is an estimate: it is right if the
time is proportional to that count, as for the bytes of a decode that waits for memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from pytest_llmperf.metrics import METRICS
from pytest_llmperf.storage.baseline_file import Written
from pytest_llmperf.storage.schema import MetricKey
from pytest_llmperf.verdict.code_change import CodeChange
from pytest_llmperf.verdict.model import Outcome, Verdict
from pytest_llmperf.verdict.time_change import OperatorChange, Phase, TimeChange
from pytest_llmperf.verdict.work_change import COUNTED_METRICS, FOLLOWING, TIMED, WorkChange

Kind = Literal["work", "device", "host", "same", "code", "unknown"]
"""Counted work, a kernel, an operator, nothing that is counted or profiled, the code alone, or nothing known."""
_KINDS = get_args(Kind)

LEADING_SHARE = 0.5
"""Minimum share of the slowdown with which counted work leads before kernels, and kernels before operators."""

_TOTALS: Mapping[Phase, Sequence[str]] = {
    "decode": ("bytes", "flops", "operators", "allocated_bytes", "allocations"),
    "prefill": ("flops", "bytes", "operators", "allocated_bytes", "allocations"),
}
"""Counted totals; what usually limits the phase comes first. A decode waits for memory, a prefill computes."""


class Cause(Written):
    """The most telling fact about a change."""

    kind: Kind
    metric: MetricKey
    """The metric that changed."""
    ratio: float | None
    """now / base of the metric, whichever direction is better."""
    workload: str
    against: str
    phase: Phase | None = None
    name: str = ""
    """Name of the total in `StepCounts`, or of the operator or kernel."""
    share: float = 0.0
    """Share of the slowdown that it accounts for, at most 1."""


class Why(Written):
    """Why a test's figures changed, from the counted work, the profiles and the code of both sides."""

    cause: Cause
    work: tuple[WorkChange, ...] = ()
    """Counted work that explains a verdict, by workload and phase."""
    times: tuple[TimeChange, ...] = ()
    """Operators and kernels by time, by workload and phase."""
    code: CodeChange | None = None

    @property
    def caused_by_work(self) -> WorkChange | None:
        """The counted work that is the most telling fact; ``None`` if another one is."""
        if self.cause.kind != "work":
            return None
        key = (self.cause.workload, self.cause.phase, self.cause.against)
        return next((one for one in self.work if (one.workload, one.phase, one.against) == key), None)

    @property
    def caused_by_operator(self) -> OperatorChange | None:
        """The operator or kernel that is the most telling fact; ``None`` if another one is."""
        cause = self.cause
        here = [one for one in self.times if (one.workload, one.phase) == (cause.workload, cause.phase)]
        found = (operator for one in here for operator in one.operators)
        return next((one for one in found if (one.place, one.name) == (cause.kind, cause.name)), None)


@dataclass(frozen=True)
class Move:
    """A metric that changed, with what is needed to find its cause."""

    metric: str
    workload: str
    ratio: float | None
    fails: bool
    against: str = ""

    @property
    def phase(self) -> Phase | None:
        """The phase that the metric is of; ``None`` if it is of none that is counted or profiled."""
        kinds = (COUNTED_METRICS, TIMED, FOLLOWING)
        return next((phase for phase in COUNTED_METRICS if any(self.metric in kind[phase] for kind in kinds)), None)

    @property
    def is_timed(self) -> bool:
        """Whether it is the time of a phase."""
        return _is_timed(self.metric)

    @property
    def slowdown(self) -> float | None:
        """Ratio by which the metric got worse, or less than 1 if it got better."""
        if not self.ratio or not 0 < self.ratio < math.inf:
            return None
        return self.ratio if METRICS[self.metric].better.sign > 0 else 1 / self.ratio


def moves_of(verdicts: Iterable[Verdict]) -> list[Move]:
    """Return the gating metrics that regressed or improved."""
    return [
        Move(one.cell.metric.key, one.cell.workload, one.ratio, fails=one.fails, against=one.against)
        for one in verdicts
        if one.cell.limit.gates and one.outcome in (Outcome.REGRESSED, Outcome.IMPROVED)
    ]


def why_of(
    moves: Sequence[Move], work: Sequence[WorkChange], times: Sequence[TimeChange], codes: Sequence[CodeChange]
) -> Why | None:
    """Explain a test's changes; ``None`` if no metric regressed and no counted work changed.

    Args:
        moves: of one test.
        work: the counted work that explains them.
        times: the profiles that explain them.
        codes: what lies between this run and each base; the first one of the cause's base counts.
    """
    moved = [move for move in moves if move.fails] or (list(moves) if work else [])
    if not moved:
        return None
    cause = _most_telling(moved, work, times) or _without_cause(moved, codes)
    code = next((code for code in codes if code.against == cause.against), None)
    return Why(cause=cause, work=tuple(work), times=tuple(times), code=code)


def _most_telling(moves: Sequence[Move], work: Sequence[WorkChange], times: Sequence[TimeChange]) -> Cause | None:
    timed = {(move.workload, move.phase) for move in moves if move.is_timed}
    found = [cause for move in moves for cause in (*_in_work(move, work), *_in_times(move, times), *_same(move, work))]

    def order(cause: Cause) -> tuple[object, ...]:
        leads, kind = cause.share >= LEADING_SHARE, _KINDS.index(cause.kind)
        return (
            not leads,
            not _is_timed(cause.metric),  # a count accounts for itself, which tells nothing about a time
            (cause.workload, cause.phase) not in timed,
            kind if leads else 0,  # the host waits for kernels, so its share may be larger than theirs
            -cause.share,
            kind,
            *_ties(cause),
        )

    return min(found, key=order, default=None)


def _is_timed(metric: str) -> bool:
    return any(metric in keys for keys in TIMED.values())


def _ties(cause: Cause) -> tuple[object, ...]:
    """Return what orders equal causes, so that their order does not depend on that of the input."""
    totals = _TOTALS[cause.phase] if cause.phase else ()
    total = totals.index(cause.name) if cause.name in totals else 0
    return (cause.phase != "decode", bool(cause.against), total, cause.name, *_identity(cause))


def _identity(cause: Cause) -> tuple[object, ...]:
    return (cause.workload, cause.against, cause.metric, cause.ratio or 0.0)


def _in_work(move: Move, work: Sequence[WorkChange]) -> Iterator[Cause]:
    """Yield the counted totals of the metric's phase, if its work changed."""
    for change in _counted(move, work):
        if not change.differs:
            continue
        if counted := COUNTED_METRICS[change.phase].get(move.metric):
            yield _cause("work", move, name=counted, share=_counted_share(change, counted))
        else:
            for name in _TOTALS[change.phase]:
                yield _cause("work", move, name=name, share=_share(change.total(name).ratio, move.slowdown))


def _counted(move: Move, work: Sequence[WorkChange]) -> list[WorkChange]:
    here = (move.workload, move.phase, move.against)
    return [one for one in work if (one.workload, one.phase, one.against) == here]


def _counted_share(change: WorkChange, name: str) -> float:
    """A counted metric is explained by its own count."""
    return 1.0 if change.total(name).difference or change.grown(name) else 0.0


def _share(ratio: float | None, slowdown: float | None) -> float:
    """Return log(ratio) / log(slowdown): the share of the slowdown if time is proportional to the count."""
    if ratio is None or slowdown is None or ratio <= 1 or slowdown <= 1:
        return 0.0
    return min(1.0, math.log(ratio) / math.log(slowdown))


def _in_times(move: Move, times: Sequence[TimeChange]) -> Iterator[Cause]:
    """Yield the operators and kernels that take longer, or are called more often."""
    for change in _profiled(move, times):
        added = _added_ms(change)
        for one in change.operators:
            share = min(1.0, one.difference_ms / added) if added > 0 and one.difference_ms > 0 else 0.0
            if share or one.more_calls > 0:
                yield _cause(one.place, move, name=one.name, share=share)
        if not any(one.difference_ms > 0 for one in change.operators) or added <= 0:
            yield _cause("same", move)


def _same(move: Move, work: Sequence[WorkChange]) -> Iterator[Cause]:
    """Yield that a slower phase does the same work."""
    if move.is_timed and any(one.is_equal for one in _counted(move, work)):
        yield _cause("same", move)


def _profiled(move: Move, times: Sequence[TimeChange]) -> list[TimeChange]:
    if not move.is_timed or move.against:
        return []
    return [one for one in times if (one.workload, one.phase) == (move.workload, move.phase) and not one.reason]


def _added_ms(change: TimeChange) -> float:
    return (change.now_ms or 0.0) - (change.base_ms or 0.0)


def _without_cause(moves: Sequence[Move], codes: Sequence[CodeChange]) -> Cause:
    """Return that only the code may tell, or nothing."""
    known = {code.against for code in codes if code.is_known}
    found = [_cause("code" if move.against in known else "unknown", move) for move in moves]
    return min(found, key=lambda cause: (_KINDS.index(cause.kind), bool(cause.against), *_identity(cause)))


def _cause(kind: Kind, move: Move, *, name: str = "", share: float = 0.0) -> Cause:
    return Cause(
        kind=kind,
        metric=move.metric,
        ratio=move.ratio if move.slowdown else None,
        workload=move.workload,
        against=move.against,
        phase=move.phase,
        name=name,
        share=share,
    )
