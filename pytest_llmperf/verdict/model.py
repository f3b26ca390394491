"""The words in which a comparison is told: outcomes, verdicts, limits and the evidence they rest on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from pytest_llmperf.metrics import Kind, Limit, Metric
from pytest_llmperf.stats.student_t import Interval
from pytest_llmperf.text import plural


class Outcome(StrEnum):
    """What can be said of one cell (one test x one metric)."""

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
        """Whether the cell was compared and the comparison had an answer."""
        return self in _DECIDED

    @property
    def words(self) -> str:
        """As a reader sees it: ``not comparable``."""
        return self.value.replace("_", " ")


_DECIDED = frozenset({Outcome.REGRESSED, Outcome.IMPROVED, Outcome.UNCHANGED})


def number(value: float | str | None) -> float:
    """That value, known to be a number.

    Raises:
        TypeError: it is a text or is missing.
    """
    if value is None or isinstance(value, str):
        raise TypeError(f"expected a number, got {value!r}")
    return float(value)


def evidence(runs: int, sessions: int) -> str:
    """How much a verdict rests on: ``5 runs in 1 session``."""
    return f"{plural(runs, 'run')} in {plural(sessions, 'session')}"


def percent(share: float) -> str:
    """A share as a percentage of two digits: ``25 %``, ``3.4 %``."""
    return f"{float(f'{100 * share:.2g}'):g} %"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One run's figure for one cell of the baseline."""

    run_id: str
    session_id: str
    value: int | float | str


@dataclass(frozen=True, kw_only=True)
class Cell:
    """All that is needed to judge one test x metric.

    ``value`` is this run's figure, ``None`` if it could not be measured, with ``reason`` saying why. ``window`` holds
    the comparable runs of the baseline since the cell's last epoch, oldest first.
    """

    test: str
    metric: Metric
    limit: Limit
    value: int | float | str | None
    window: Sequence[Sample] = ()
    reason: str = ""
    workload: str = ""
    """The workload's hash: a test may measure several."""

    @property
    def key(self) -> tuple[str, str, str]:
        """Test, workload and metric."""
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
        """How many sessions the window's runs come from."""
        return len({sample.session_id for sample in self.window})


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was decided about one cell, and on what evidence.

    ``ratio`` is now / baseline whichever way is better; ``limit`` and ``mde`` are in the same scale: the ratio beyond
    which a change is a regression, and the relative change for the worse that this baseline finds 9 times in 10.
    """

    cell: Cell
    outcome: Outcome
    kind: Kind
    """How it was judged: an exact metric that varies on identical runs is judged as a timed one."""
    reason: str = ""
    baseline: int | float | str | None = None
    ratio: float | None = None
    interval: Interval | None = None
    limit_ratio: float | None = None
    mde: float | None = None
    p_value: float | None = None
    flagged: bool = False
    """The screen suspects a regression: fresh runs can confirm or clear it, whatever the outcome says."""
    runs: int = 0
    sessions: int = 0
    against: str = ""
    """The revision whose baseline this is about; empty for the present one."""
    blocks: int = 0
    """Pairs of fresh processes, one of base and one of head, where that is what was compared."""
    candidates: Sequence[float] = ()
    """All of this session's figures that were judged, where fresh runs confirmed or cleared the first one."""

    @property
    def counts(self) -> bool:
        """Whether the cell can fail its test: it gates, and this device can measure it at all."""
        never_measured = self.outcome is Outcome.NEW and self.cell.value is None
        return self.cell.limit.gates and not never_measured

    @property
    def suspect(self) -> bool:
        """Whether fresh runs must confirm this verdict before it may fail its test."""
        return self.flagged and self.cell.limit.gates

    @property
    def fails(self) -> bool:
        """Whether this verdict fails its test: a regression of a metric that gates."""
        return self.outcome is Outcome.REGRESSED and self.cell.limit.gates
