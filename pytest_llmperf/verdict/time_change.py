"""Compare two operator profiles of a regression: operators and kernels by time, largest difference first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pytest_llmperf.storage.baseline_file import Written
from pytest_llmperf.storage.schema import OTHERS, OperatorTime, PhaseProfile
from pytest_llmperf.verdict.model import Verdict

Phase = Literal["prefill", "decode"]
OF_PREFILL = frozenset({"ttft_ms", "prefill_tokens_per_s"})
OF_DECODE = frozenset({"tpot_ms", "e2e_ms", "decode_tokens_per_s"})
"""Metrics that measure a phase of a request. Callables and concurrent requests are not profiled."""

MOST_ROWS, FEWEST_ROWS = 10, 3
MOST_RECOUNTED = 5
"""Maximum rows for operators whose call count changed, however small their time.

Call counts are exact; the times of a single profile are not.
"""
LEAST_SHARE = 0.005
"""Minimum difference for a row, as a share of the base's step; smaller ones show only if none is larger."""
LEAST_RECOUNT = 0.005
"""Minimum change of the call count, as a share of the base's; a smaller one would not show in three digits."""


class OperatorChange(Written):
    """One operator or kernel on both sides, per step; ``None`` if a side counts it among its other small ones."""

    name: str
    place: Literal["host", "device"]
    base_ms: float | None
    now_ms: float | None
    base_calls: float | None
    now_calls: float | None

    @property
    def difference_ms(self) -> float:
        """Increase of its time, in ms."""
        return (self.now_ms or 0.0) - (self.base_ms or 0.0)

    @property
    def more_calls(self) -> float:
        """Increase of its call count; 0 if a side's count is unknown."""
        if self.name == OTHERS or self.base_calls is None or self.now_calls is None:
            return 0.0
        more = self.now_calls - self.base_calls
        return more if abs(more) > LEAST_RECOUNT * self.base_calls else 0.0


class TimeChange(Written):
    """Time by operator for one phase of a workload, or the ``reason`` why it is unknown.

    Times are per token (decode) or per request (prefill), from one profiled request of each side. They include the
    profiler's overhead, so they exceed the timed ones.
    """

    workload: str
    phase: Phase
    base: str = ""
    """Name of the side compared with."""
    base_ms: float | None = None
    """Time of one step by the host's clock."""
    now_ms: float | None = None
    operators: tuple[OperatorChange, ...] = ()
    """The largest differences and changed call counts, largest slowdown first."""
    traces: str = ""
    """Folder of torch's traces, in the project."""
    reason: str = ""


@dataclass(frozen=True)
class Profiles:
    """Profiles of one side, by test and workload hash, then by phase; ``why_not`` explains a missing one."""

    name: str
    found: Mapping[tuple[str, str], Mapping[str, PhaseProfile]] = field(default_factory=dict)
    why_not: str = "no profile was made"


def slower(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Return the failing verdicts that a profile can explain: times of a request."""
    return [
        verdict
        for verdict in verdicts
        if verdict.fails and verdict.cell.metric.key in OF_PREFILL | OF_DECODE and not verdict.against
    ]


def time_changes(verdicts: Sequence[Verdict], base: Profiles, now: Profiles, *, traces: str = "") -> list[TimeChange]:
    """Compare the profiles of each workload and phase that became slower.

    Args:
        verdicts: verdicts of one test.
        base: profiles of the baseline side.
        now: profiles of the present side.
        traces: folder of the traces, in the project.
    """
    wanted = dict.fromkeys((verdict.cell.test, verdict.cell.workload, _phase(verdict)) for verdict in slower(verdicts))
    return [_time_change(key, base, now, traces) for key in wanted]


def _phase(verdict: Verdict) -> Phase:
    return "prefill" if verdict.cell.metric.key in OF_PREFILL else "decode"


def _time_change(key: tuple[str, str, Phase], base: Profiles, now: Profiles, traces: str) -> TimeChange:
    test, workload, phase = key
    for side in (base, now):
        if phase not in side.found.get((test, workload), {}):
            return TimeChange(workload=workload, phase=phase, reason=f"{side.name}: {side.why_not}")
    then, since = (side.found[test, workload][phase] for side in (base, now))
    return TimeChange(
        workload=workload,
        phase=phase,
        base=base.name,
        base_ms=then.wall_ms,
        now_ms=since.wall_ms,
        operators=tuple(_largest(list(_changes(then, since)), LEAST_SHARE * then.wall_ms)),
        traces=traces,
    )


def _changes(base: PhaseProfile, now: PhaseProfile) -> Iterator[OperatorChange]:
    for name, place in dict.fromkeys((one.name, one.place) for one in [*base.operators, *now.operators]):
        old, new = (_looked_up(side, name, place) for side in (base, now))
        yield OperatorChange(
            name=name,
            place=place,
            base_ms=old.self_ms if old else None,
            now_ms=new.self_ms if new else None,
            base_calls=old.calls if old else None,
            now_calls=new.calls if new else None,
        )


def _looked_up(side: PhaseProfile, name: str, place: Literal["host", "device"]) -> OperatorTime | None:
    """Return an operator's time: zero if the profile names every operator, ``None`` if it may be in `OTHERS`."""
    named = {one.name: one for one in side.operators if one.place == place}
    absent = None if OTHERS in named else OperatorTime(name=name, place=place, self_ms=0.0, calls=0.0)
    return named.get(name, absent)


def _largest(changes: Sequence[OperatorChange], least_ms: float) -> list[OperatorChange]:
    ordered = sorted(changes, key=lambda one: -abs(one.difference_ms))
    recounted = [one for one in ordered if one.more_calls][:MOST_RECOUNTED]
    large = [one for one in ordered if abs(one.difference_ms) >= least_ms and one not in recounted]
    shown = [*recounted, *large][:MOST_ROWS] or ordered[:FEWEST_ROWS]
    return sorted(shown, key=lambda one: -one.difference_ms)
