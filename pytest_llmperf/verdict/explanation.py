"""Why a time regressed: the operators and kernels of two profiles side by side, largest difference first."""

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
"""Metrics whose time is that of a phase of a request; that of a callable or of many requests is not profiled."""

MOST_ROWS, FEWEST_ROWS = 10, 3
MOST_RECOUNTED = 5
"""Rows kept for what is called more or less often, however small its time: calls are exact, one profile's times not."""
LEAST_SHARE = 0.005
"""Of the base's step: smaller differences have a row only where there is no larger one."""
LEAST_RECOUNT = 0.005
"""Of the base's calls: a smaller change would not show in three digits."""


class OperatorChange(Written):
    """One operator or kernel on both sides, per step; ``None`` where a side sums it up with its other small ones."""

    name: str
    place: Literal["host", "device"]
    base_ms: float | None
    now_ms: float | None
    base_calls: float | None
    now_calls: float | None

    @property
    def difference_ms(self) -> float:
        """How much longer it takes now."""
        return (self.now_ms or 0.0) - (self.base_ms or 0.0)

    @property
    def more_calls(self) -> float:
        """How many calls there are more now, as far as both sides tell."""
        if self.name == OTHERS or self.base_calls is None or self.now_calls is None:
            return 0.0
        more = self.now_calls - self.base_calls
        return more if abs(more) > LEAST_RECOUNT * self.base_calls else 0.0


class Explanation(Written):
    """Where the time of one workload's phase went; or the ``reason`` why nobody knows.

    Times are per token of decode or per request of prefill, of one profiled request of each side: longer than timed
    ones are, by what profiling costs.
    """

    workload: str
    phase: Phase
    base: str = ""
    """What is compared with."""
    base_ms: float | None = None
    """The step by the host's clock."""
    now_ms: float | None = None
    operators: tuple[OperatorChange, ...] = ()
    """The largest differences and what is called more or less often, what takes longer first."""
    traces: str = ""
    """The folder where torch's traces are kept, in the project."""
    reason: str = ""


@dataclass(frozen=True)
class Profiles:
    """The profiles of one side, by test and workload hash, then by phase; ``why_not`` is why one is not there."""

    name: str
    found: Mapping[tuple[str, str], Mapping[str, PhaseProfile]] = field(default_factory=dict)
    why_not: str = "it was not profiled"


def slower(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Those that fail their test for a time that a request takes: what a profile may explain."""
    return [
        verdict
        for verdict in verdicts
        if verdict.fails and verdict.cell.metric.key in OF_PREFILL | OF_DECODE and not verdict.against
    ]


def explanations(verdicts: Sequence[Verdict], base: Profiles, now: Profiles, *, traces: str = "") -> list[Explanation]:
    """One for each workload and phase that got slower.

    Args:
        verdicts: of one test.
        base: what it was compared with.
        now: what it is.
        traces: where the traces lie, in the project.
    """
    wanted = dict.fromkeys((verdict.cell.test, verdict.cell.workload, _phase(verdict)) for verdict in slower(verdicts))
    return [_explanation(key, base, now, traces) for key in wanted]


def _phase(verdict: Verdict) -> Phase:
    return "prefill" if verdict.cell.metric.key in OF_PREFILL else "decode"


def _explanation(key: tuple[str, str, Phase], base: Profiles, now: Profiles, traces: str) -> Explanation:
    test, workload, phase = key
    for side in (base, now):
        if phase not in side.found.get((test, workload), {}):
            return Explanation(workload=workload, phase=phase, reason=f"{side.name}: {side.why_not}")
    then, since = (side.found[test, workload][phase] for side in (base, now))
    return Explanation(
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
    """Nothing at all where the profile names every operator; ``None`` where it may be among the others."""
    named = {one.name: one for one in side.operators if one.place == place}
    absent = None if OTHERS in named else OperatorTime(name=name, place=place, self_ms=0.0, calls=0.0)
    return named.get(name, absent)


def _largest(changes: Sequence[OperatorChange], least_ms: float) -> list[OperatorChange]:
    ordered = sorted(changes, key=lambda one: -abs(one.difference_ms))
    recounted = [one for one in ordered if one.more_calls][:MOST_RECOUNTED]
    large = [one for one in ordered if abs(one.difference_ms) >= least_ms and one not in recounted]
    shown = [*recounted, *large][:MOST_ROWS] or ordered[:FEWEST_ROWS]
    return sorted(shown, key=lambda one: -one.difference_ms)
