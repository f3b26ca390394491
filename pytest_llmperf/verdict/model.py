"""Data model of verdicts: outcomes, cells, samples and the evidence of a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from pytest_llmperf.metrics import METRICS, Kind, Limit, Metric
from pytest_llmperf.stats.interval import Interval
from pytest_llmperf.text import plural


class Outcome(StrEnum):
    """Outcome of one cell (one test x one metric)."""

    REGRESSED = "regressed"
    IMPROVED = "improved"
    UNCHANGED = "unchanged"
    INCONCLUSIVE = "inconclusive"
    NEW = "new"
    MISSING = "missing"
    NOT_COMPARABLE = "not_comparable"
    INVALID = "invalid"
    ERROR = "error"

    @property
    def decided(self) -> bool:
        """Whether the cell was compared and the result is conclusive."""
        return self in _DECIDED

    @property
    def severity(self) -> int:
        """Sort key: the worst outcome is 0."""
        return _WORST_FIRST.index(self)

    @property
    def words(self) -> str:
        """The outcome as shown to users: ``not comparable``."""
        return self.value.replace("_", " ")


_DECIDED = frozenset({Outcome.REGRESSED, Outcome.IMPROVED, Outcome.UNCHANGED})
_WORST_FIRST = (
    *(Outcome.ERROR, Outcome.REGRESSED, Outcome.INVALID, Outcome.INCONCLUSIVE, Outcome.MISSING),
    *(Outcome.NOT_COMPARABLE, Outcome.NEW, Outcome.IMPROVED, Outcome.UNCHANGED),
)


CellKey = tuple[str, str, str]
"""Test, workload hash and metric key."""


def number(value: float | str | None) -> float:
    """Return a value that must be a number.

    Raises:
        TypeError: it is a text or is missing.
    """
    if value is None or isinstance(value, str):
        raise TypeError(f"expected a number, got {value!r}")
    return float(value)


def compared_figure(
    value: float | str | None, baseline: float | str | None, ratio: float | None, candidates: Sequence[float]
) -> int | float | str | None:
    """Return the figure that a change refers to: this run's, or with confirmation runs the mean of all runs."""
    return number(baseline) * ratio if candidates and ratio is not None else value


def since(against: str) -> str:
    """Return the anchor's revision as text; empty for the present baseline."""
    return f" since {against}" if against else ""


def evidence(runs: int, sessions: int) -> str:
    """Return the number of runs and sessions as text: ``5 runs in 1 session``."""
    return f"{plural(runs, 'run')} in {plural(sessions, 'session')}"


def percent(share: float) -> str:
    """Format a share as a percentage of two digits: ``25 %``, ``3.4 %``."""
    return f"{float(f'{100 * share:.2g}'):g} %"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One baseline run's figure for one cell."""

    run_id: str
    session_id: str
    value: int | float | str


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One test x metric with everything needed to judge it.

    ``value`` is this run's figure, or ``None`` if it could not be measured, for the ``reason`` given. ``window`` holds
    the comparable baseline runs since the cell's last epoch, oldest first.
    """

    test: str
    metric: Metric
    limit: Limit
    value: int | float | str | None
    window: Sequence[Sample] = ()
    reason: str = ""
    workload: str = ""
    """The workload's hash; a test may measure several workloads."""

    @classmethod
    def of(
        cls,
        key: CellKey,
        limit: Limit,
        value: float | str | None,
        window: Sequence[Sample] = (),
        *,
        reason: str = "",
    ) -> Cell:
        """Return the cell of a key.

        Raises:
            KeyError: the key's metric is not defined.
        """
        test, workload, metric = key
        return cls(
            test=test,
            workload=workload,
            metric=METRICS[metric],
            limit=limit,
            value=value,
            window=window,
            reason=reason,
        )

    @property
    def key(self) -> CellKey:
        """Test, workload hash and metric key."""
        return (self.test, self.workload, self.metric.key)

    @property
    def figures(self) -> list[float]:
        """The window's values as numbers.

        Raises:
            TypeError: one of them is a text.
        """
        return [number(sample.value) for sample in self.window]

    @property
    def sessions(self) -> int:
        """Number of sessions of the window's runs."""
        return len({sample.session_id for sample in self.window})


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The outcome of one cell and its evidence.

    ``ratio`` is now / baseline, whichever direction is better. ``limit_ratio`` is the ratio beyond which a change is a
    regression. ``mde`` is the minimum detectable effect: the relative change for the worse that is found 9 times in 10.
    """

    cell: Cell
    outcome: Outcome
    kind: Kind
    """How it was judged: an exact metric that varies between identical runs is judged as a timed one."""
    reason: str = ""
    baseline: int | float | str | None = None
    ratio: float | None = None
    interval: Interval | None = None
    limit_ratio: float | None = None
    mde: float | None = None
    p_value: float | None = None
    flagged: bool = False
    """Whether the screen suspects a regression that fresh runs can confirm or clear, whatever the outcome."""
    runs: int = 0
    sessions: int = 0
    against: str = ""
    """Revision of the baseline compared with; empty for the present baseline."""
    blocks: int = 0
    """Number of paired blocks, each one base and one head process; 0 unless two revisions were compared."""
    candidates: Sequence[float] = ()
    """All judged figures of this session, if confirmation runs followed the first one."""

    @property
    def counts(self) -> bool:
        """Whether the cell can fail its test: it gates, and this device can measure it."""
        never_measured = self.outcome is Outcome.NEW and self.cell.value is None
        return self.cell.limit.gates and not never_measured

    @property
    def now(self) -> int | float | str | None:
        """The figure that the change refers to."""
        return compared_figure(self.cell.value, self.baseline, self.ratio, self.candidates)

    @property
    def suspect(self) -> bool:
        """Whether fresh runs must confirm this verdict before it may fail its test."""
        return self.flagged and self.cell.limit.gates

    @property
    def fails(self) -> bool:
        """Whether this verdict fails its test: a regression of a gating metric."""
        return self.outcome is Outcome.REGRESSED and self.cell.limit.gates
