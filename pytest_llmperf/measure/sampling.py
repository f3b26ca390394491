"""How many samples a timing takes: a given number, or as many as a precision needs within a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from statistics import median

from pytest_llmperf.errors import UsageError
from pytest_llmperf.measure.throttling import Throttling
from pytest_llmperf.validation import require_positive, require_whole

LEAST_SAMPLES = 10
"""As in nvbench: of fewer, the error of their median cannot be told."""
MOST_SAMPLES = 1000
"""All are recorded. As many tell the median to a 25th of their standard deviation."""
PRECISION = 0.005
"""The number that nvbench's users know as its most noise; there it is the standard deviation of single samples."""
BUDGET_MS = 200.0
"""Between triton's ``do_bench`` (100 ms) and nvbench (500 ms)."""
BATCH_MS = 20.0
LARGEST_BATCH = 100
"""Of samples between two synchronizations and readings of the clocks."""
SHORTEST_MS = 1e-6
"""No clock here tells less from nothing at all."""
_Z = 2.5758
"""The normal distribution's quantile of 99.5 %, which McKean and Schrader chose."""

Take = Callable[[int], tuple[Sequence[float], float]]
"""Takes so many samples: gives them, and how long it took; both in milliseconds."""


class Stop(StrEnum):
    """Why no more samples were taken."""

    NUMBER = "number"
    """As many were taken as were asked for, or as are kept at most."""
    PRECISION = "precision"
    """The median is as precise as asked for."""
    TIME = "time"
    """The budget is spent, and the precision was not reached."""


@dataclass(frozen=True)
class Rule:
    """When to stop: at ``most`` samples, or from ``least`` on by precision or time."""

    least: int = LEAST_SAMPLES
    most: int = MOST_SAMPLES
    precision: float = PRECISION
    """Relative standard error of the median."""
    budget_ms: float = BUDGET_MS
    """Time for taking samples, flushes of the cache included."""

    @classmethod
    def of(cls, repetitions: int | None, precision: float | None, budget_ms: float | None) -> Rule:
        """The rule of exactly so many repetitions, or else that of a precision and a budget; ``None`` is the default.

        Raises:
            UsageError: one is no such number, or there are both.
        """
        wanted = {"precision": precision, "budget_ms": budget_ms}
        given = {name: value for name, value in wanted.items() if value is not None}
        for name, value in given.items():
            require_positive(name, value)
        if repetitions is None:
            return cls(precision=precision or PRECISION, budget_ms=budget_ms or BUDGET_MS)
        require_whole("repetitions", repetitions, at_least=1)
        for name, value in given.items():
            raise UsageError(f"{name}={value!r} beside repetitions={repetitions}: expected either")
        return cls(least=repetitions, most=repetitions)

    @property
    def is_number(self) -> bool:
        """Whether the number of samples is fixed beforehand."""
        return self.least == self.most

    def stop(self, samples: Sequence[float], spent_ms: float) -> Stop | None:
        """Why to stop after these samples; ``None`` to go on."""
        if len(samples) < self.least:
            return None
        if not self.is_number and error_of_median(samples) <= self.precision:
            return Stop.PRECISION
        if len(samples) >= self.most:
            return Stop.NUMBER
        return Stop.TIME if spent_ms >= self.budget_ms else None

    def batch(self, taken: int, spent_ms: float, each_ms: float) -> int:
        """How many samples to take next, without a look at them; each takes about ``each_ms``."""
        affordable = min(BATCH_MS, self.budget_ms - spent_ms) / max(each_ms, SHORTEST_MS)
        wanted = max(self.least - taken, min(int(affordable), LARGEST_BATCH), 1)
        return min(wanted, self.most - taken)


def error_of_median(samples: Sequence[float]) -> float:
    """The standard error of the samples' median, relative to it; infinite where it cannot be told.

    It is that of McKean and Schrader (1984), which assumes no distribution: with z = 2.5758 and c the whole number
    next to (n + 1) / 2 - z * sqrt(n / 4), at least 1, it is the distance between the c-th smallest and the c-th largest
    sample, divided by 2 z. Samples of one process share its luck: the spread from run to run comes on top.
    So does the clock's step: where most samples are equal, the error is 0.

    It cannot be told of fewer than ten samples, nor where their median is not above 0.
    """
    ordered, n = sorted(samples), len(samples)
    if n < LEAST_SAMPLES or median(ordered) <= 0:
        return math.inf
    rank = max(round((n + 1) / 2 - _Z * math.sqrt(n / 4)), 1)
    return (ordered[n - rank] - ordered[rank - 1]) / (2 * _Z) / median(ordered)


@dataclass(frozen=True)
class Sampler:
    """Takes samples in batches: few enough to obey the rule, large enough that a synchronization ends few samples."""

    rule: Rule
    throttling: Throttling

    def collect(self, take: Take, *, estimate_ms: float) -> tuple[tuple[float, ...], Stop]:
        """Samples until the rule stops, and why it stopped.

        Args:
            take: takes a batch.
            estimate_ms: time of one sample, until there is a batch to tell it.
        """
        samples: list[float] = []
        made, spent_ms = 0, 0.0
        while (stop := self.rule.stop(samples, spent_ms)) is None:
            size = self.rule.batch(len(samples), spent_ms, spent_ms / made if made else estimate_ms)
            batch, took_ms = take(size)
            made, spent_ms = made + size, spent_ms + took_ms
            if self.throttling.accepts(size):
                samples += batch
            else:
                self.throttling.recover(partial(take, size))
        return tuple(samples), stop
