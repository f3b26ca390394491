"""Sampling rule of a timing: a fixed number of samples, or as many as a precision needs within a time budget."""

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
"""As in nvbench: with fewer samples, the error of the median cannot be estimated."""
MOST_SAMPLES = 1000
"""All are recorded. This many determine the median to 1/25 of their standard deviation."""
PRECISION = 0.005
"""nvbench's default for maximum noise, which there is the relative standard deviation of single samples."""
BUDGET_MS = 200.0
"""Between triton's ``do_bench`` (100 ms) and nvbench (500 ms)."""
BATCH_MS = 20.0
LARGEST_BATCH = 100
"""Most samples between two synchronizations and clock readings."""
SHORTEST_MS = 1e-6
"""The finest resolution of any clock used here: 1 ns."""
_Z = 2.5758
"""The 99.5 % quantile of the normal distribution, which McKean and Schrader chose."""

Take = Callable[[int], tuple[Sequence[float], float]]
"""Takes this many samples; returns them and the total time, both in milliseconds."""


class Stop(StrEnum):
    """Why sampling stopped."""

    NUMBER = "number"
    """The requested or largest number of samples was reached."""
    PRECISION = "precision"
    """The median is as precise as requested."""
    TIME = "time"
    """The budget was spent before the precision was reached."""


@dataclass(frozen=True)
class Rule:
    """When to stop: at ``most`` samples, or from ``least`` on by precision or time."""

    least: int = LEAST_SAMPLES
    most: int = MOST_SAMPLES
    precision: float = PRECISION
    """Relative standard error of the median."""
    budget_ms: float = BUDGET_MS
    """Time budget for taking samples, including cache flushes."""

    @classmethod
    def of(cls, repetitions: int | None, precision: float | None, budget_ms: float | None) -> Rule:
        """A fixed number of repetitions, or a precision and a budget; ``None`` means the default.

        Raises:
            UsageError: a value is invalid, or repetitions are combined with either of the others.
        """
        wanted = {"precision": precision, "budget_ms": budget_ms}
        given = {name: value for name, value in wanted.items() if value is not None}
        for name, value in given.items():
            require_positive(name, value)
        if repetitions is None:
            return cls(precision=precision or PRECISION, budget_ms=budget_ms or BUDGET_MS)
        require_whole("repetitions", repetitions, at_least=1)
        for name, value in given.items():
            raise UsageError(f"found {name}={value!r} and repetitions={repetitions}; expected only one of them")
        return cls(least=repetitions, most=repetitions)

    @property
    def is_number(self) -> bool:
        """Whether the number of samples is fixed in advance."""
        return self.least == self.most

    def stop(self, samples: Sequence[float], spent_ms: float) -> Stop | None:
        """Why to stop after these samples; ``None`` to continue."""
        if len(samples) < self.least:
            return None
        if not self.is_number and error_of_median(samples) <= self.precision:
            return Stop.PRECISION
        if len(samples) >= self.most:
            return Stop.NUMBER
        return Stop.TIME if spent_ms >= self.budget_ms else None

    def batch(self, taken: int, spent_ms: float, each_ms: float) -> int:
        """Number of samples in the next batch, if each takes about ``each_ms``."""
        affordable = min(BATCH_MS, self.budget_ms - spent_ms) / max(each_ms, SHORTEST_MS)
        wanted = max(self.least - taken, min(int(affordable), LARGEST_BATCH), 1)
        return min(wanted, self.most - taken)


def error_of_median(samples: Sequence[float]) -> float:
    """Relative standard error of the samples' median; infinite where it cannot be estimated.

    The estimate is that of McKean and Schrader (1984), which assumes no distribution. With z = 2.5758 and c the integer
    nearest to (n + 1) / 2 - z * sqrt(n / 4), at least 1, the error is the distance between the c-th smallest and the
    c-th largest sample, divided by 2 z. It does not include the variation between processes, nor the clock's
    resolution: where most samples are equal, the error is 0.

    It cannot be estimated for fewer than ten samples, or where the median is not above 0.
    """
    ordered, n = sorted(samples), len(samples)
    if n < LEAST_SAMPLES or median(ordered) <= 0:
        return math.inf
    rank = max(round((n + 1) / 2 - _Z * math.sqrt(n / 4)), 1)
    return (ordered[n - rank] - ordered[rank - 1]) / (2 * _Z) / median(ordered)


@dataclass(frozen=True)
class Sampler:
    """Takes samples in batches: small enough for the rule, large enough that synchronizations are rare."""

    rule: Rule
    throttling: Throttling

    def collect(self, take: Take, *, estimate_ms: float) -> tuple[tuple[float, ...], Stop]:
        """Take samples until the rule stops; return them and the reason.

        Args:
            take: takes a batch.
            estimate_ms: time per sample, used until the first batch has measured it.
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
