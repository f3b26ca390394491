"""What timing a callable gives: samples, what they were taken with, and their share of what the device can do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from pytest_llmperf.errors import MeasurementError, UsageError
from pytest_llmperf.hardware.gpu_clocks import ClockState
from pytest_llmperf.measure.sampling import Stop, error_of_median
from pytest_llmperf.stats.summary import percentile
from pytest_llmperf.storage.schema import Warmup
from pytest_llmperf.validation import require_positive
from pytest_llmperf.verdict.model import percent

MS_PER_S = 1e3
FLUSH_OFF = "flush_l2 is off"


@dataclass(frozen=True)
class Spread:
    """How far samples lie apart, in milliseconds: median absolute deviation from the median, and the quartiles."""

    mad_ms: float
    lower_quartile_ms: float
    upper_quartile_ms: float


@dataclass(frozen=True)
class Limits:
    """What a device was measured to do: bytes read and written by a copy, and operations of a matrix product."""

    device: str
    dtype: str
    """Of the product's matrices."""
    copy_bytes_per_s: float
    matrix_operations_per_s: float


@dataclass(frozen=True)
class Roofline:
    """What one call reached, and its shares of the measured limits; ``None`` for what was not given."""

    bytes_per_s: float | None
    copy_share: float | None
    operations_per_s: float | None
    matrix_share: float | None


@dataclass(frozen=True)
class Timing:
    """Times of single calls, in milliseconds. ``str(timing)`` is one readable line."""

    name: str
    """Of what was called."""
    arguments: str
    """Dtypes and shapes of tensors, the text of numbers and strings, the types of all else."""
    device: str
    clock: str
    samples_ms: tuple[float, ...]
    """One for each repetition, between two stamps around an eager call."""
    stop: Stop
    """Why no more of them were taken."""
    graph_samples_ms: tuple[float, ...]
    """One for each replay of a CUDA graph: its time divided by the calls in it. Empty if no graph was used."""
    graph_stop: Stop | None
    """Why no more of them were taken; ``None`` if no graph was used."""
    wanted_precision: float | None
    """Relative standard error of each median that was to be reached; ``None`` if the number of samples was given."""
    graph_repetitions: int
    """Calls that one graph holds."""
    graph_sized: bool
    """Whether the timer chose that number itself, by how long a call takes."""
    graph_reason: str
    """Why no graph was used; empty if one was."""
    flush_reason: str
    """Why the L2 cache was not flushed before each call; empty if it was."""
    warmup: Warmup
    """Its requests are batches of calls."""
    clocks: tuple[ClockState, ...]
    """Read right before and right after each batch of samples."""
    discarded: int
    """Samples, of eager calls and of replays, that were made again because the device was throttled."""
    throttled: int
    """Samples that were kept although it was: it remained so after several pauses."""

    @property
    def graph_used(self) -> bool:
        """Whether there are samples of graph replays."""
        return not self.graph_reason

    @property
    def flushed_l2(self) -> bool:
        """Whether the L2 cache was flushed before each call, inside the graph as well."""
        return not self.flush_reason

    @property
    def before(self) -> ClockState:
        """Warmed up, before the first sample."""
        return self.clocks[0]

    @property
    def after(self) -> ClockState:
        """Right after the last sample."""
        return self.clocks[-1]

    @property
    def held_back(self) -> tuple[str, ...]:
        """What kept the device's clocks low around the samples, in NVML's words; being idle is no reason."""
        told = {reason for state in self.clocks for reason in state.throttle_reasons or ()}
        return tuple(sorted(told - {"GpuIdle"}))

    @property
    def median_ms(self) -> float:
        """Of the eager calls."""
        return median(self.samples_ms)

    @property
    def precision(self) -> float:
        """Relative standard error of ``median_ms``; infinite of fewer than ten samples."""
        return error_of_median(self.samples_ms)

    @property
    def graph_precision(self) -> float | None:
        """Relative standard error of ``graph_median_ms``; ``None`` if no graph was used."""
        return error_of_median(self.graph_samples_ms) if self.graph_used else None

    @property
    def spread(self) -> Spread:
        """Of the eager calls."""
        return _spread(self.samples_ms)

    @property
    def graph_median_ms(self) -> float | None:
        """Of the replays; ``None`` if no graph was used."""
        return median(self.graph_samples_ms) if self.graph_used else None

    @property
    def graph_spread(self) -> Spread | None:
        """Of the replays; ``None`` if no graph was used."""
        return _spread(self.graph_samples_ms) if self.graph_used else None

    def roofline(
        self, *, limits: Limits, bytes_moved: float | None = None, operations: float | None = None
    ) -> Roofline:
        """What a call reached of what the device can do, by the median of the replays, else of the eager calls.

        Args:
            limits: of the same device, as :meth:`KernelTimer.limits` measures them.
            bytes_moved: that one call must read and write.
            operations: that one call must do; a multiplication and an addition are two.

        Raises:
            UsageError: neither is given, one is not above 0, or the limits are another device's.
            MeasurementError: the clock told no time.
        """
        if limits.device != self.device:
            raise UsageError(f"roofline: limits of {limits.device}; expected those of {self.device}")
        _check_work(bytes_moved=bytes_moved, operations=operations)
        seconds = (self.graph_median_ms or self.median_ms) / MS_PER_S
        if seconds <= 0:
            raise MeasurementError(f"roofline: the clock ({self.clock}) told no time; expected a call that takes some")
        bytes_per_s, operations_per_s = _per(seconds, bytes_moved), _per(seconds, operations)
        return Roofline(
            bytes_per_s=bytes_per_s,
            copy_share=_per(limits.copy_bytes_per_s, bytes_per_s),
            operations_per_s=operations_per_s,
            matrix_share=_per(limits.matrix_operations_per_s, operations_per_s),
        )

    def __str__(self) -> str:
        mad = f"MAD {_ms(self.spread.mad_ms)}"
        eager = f"{_ms(self.median_ms)} eager ({mad}, {self._samples_words(self.samples_ms)}, {self.clock})"
        unsteady = "" if self.warmup.steady else "never became steady"
        return ", ".join(
            filter(None, (eager, self._graph_words(), self._flush_words(), unsteady, *self._clock_words()))
        )

    def _graph_words(self) -> str:
        if not self.graph_used:
            return f"no graph: {self.graph_reason}"
        calls = f"{self.graph_repetitions} call{'s' * (self.graph_repetitions != 1)}"
        samples = self._samples_words(self.graph_samples_ms)
        return f"{_ms(median(self.graph_samples_ms))} in a graph of {calls} ({samples})"

    def _samples_words(self, samples: Sequence[float]) -> str:
        """Their number and precision, and the precision that was wanted if it was not reached."""
        error, wanted = error_of_median(samples), self.wanted_precision
        reached = f" ±{percent(error)}" if math.isfinite(error) else ""
        missed = f", not ±{percent(wanted)}" if wanted is not None and error > wanted else ""
        return f"{len(samples)} sample{'s' * (len(samples) != 1)}{reached}{missed}"

    def _clock_words(self) -> list[str]:
        """What is amiss with the device's clocks."""
        told = {
            f"clocks held back: {' '.join(self.held_back)}": self.held_back,
            f"{self.discarded} throttled samples discarded": self.discarded,
            f"{self.throttled} throttled samples kept": self.throttled,
        }
        return [words for words, holds in told.items() if holds]

    def _flush_words(self) -> str:
        if self.flush_reason == FLUSH_OFF:
            return ""
        return "L2 flushed" if self.flushed_l2 else f"L2 not flushed: {self.flush_reason}"


def _spread(samples: Sequence[float]) -> Spread:
    middle = median(samples)
    mad = median(abs(sample - middle) for sample in samples)
    return Spread(mad, percentile(samples, 25), percentile(samples, 75))


def _check_work(**work: float | None) -> None:
    given = {name: amount for name, amount in work.items() if amount is not None}
    if not given:
        raise UsageError(f"roofline: nothing to compare; expected {' or '.join(f'{name}=' for name in work)}")
    for name, amount in given.items():
        require_positive(f"roofline: {name}", amount)


def _per(unit: float, amount: float | None) -> float | None:
    return None if amount is None else amount / unit


def _ms(value: float) -> str:
    return f"{value:.4g} ms"
