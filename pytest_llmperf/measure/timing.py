"""What timing a callable gives: samples, what they were taken with, and their share of what the device can do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from pytest_llmperf.errors import MeasurementError, UsageError
from pytest_llmperf.measure.clock_state import ClockState
from pytest_llmperf.records.reduce import percentile
from pytest_llmperf.records.schema import Warmup

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
    graph_samples_ms: tuple[float, ...]
    """One for each replay of a CUDA graph: its time divided by the calls in it. Empty if no graph was used."""
    graph_repetitions: int
    """Calls that one graph holds."""
    graph_reason: str
    """Why no graph was used; empty if one was."""
    flush_reason: str
    """Why the L2 cache was not flushed before each call; empty if it was."""
    warmup: Warmup
    """Its requests are batches of calls."""
    before: ClockState
    """Warmed up, before the first sample."""
    after: ClockState
    """Right after the last sample."""

    @property
    def graph_used(self) -> bool:
        """Whether there are samples of graph replays."""
        return not self.graph_reason

    @property
    def flushed_l2(self) -> bool:
        """Whether the L2 cache was flushed before each call, inside the graph as well."""
        return not self.flush_reason

    @property
    def held_back(self) -> tuple[str, ...]:
        """What kept the device's clocks low before or after the samples, in NVML's words; being idle is no reason."""
        told = {*(self.before.throttle_reasons or ()), *(self.after.throttle_reasons or ())}
        return tuple(sorted(told - {"GpuIdle"}))

    @property
    def median_ms(self) -> float:
        """Of the eager calls."""
        return median(self.samples_ms)

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
        spread = self.spread
        eager = f"{_ms(self.median_ms)} eager (MAD {_ms(spread.mad_ms)}, {len(self.samples_ms)} samples, {self.clock})"
        if self.graph_used:
            graph = f"{_ms(median(self.graph_samples_ms))} in a graph of {self.graph_repetitions} calls"
        else:
            graph = f"no graph: {self.graph_reason}"
        unsteady = "" if self.warmup.steady else "never became steady"
        held_back = f"clocks held back: {' '.join(self.held_back)}" if self.held_back else ""
        return ", ".join(filter(None, (eager, graph, self._flush_words(), unsteady, held_back)))

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
        if not isinstance(amount, int | float) or not amount > 0:
            raise UsageError(f"roofline: {name}={amount!r}: expected a number above 0")


def _per(unit: float, amount: float | None) -> float | None:
    return None if amount is None else amount / unit


def _ms(value: float) -> str:
    return f"{value:.4g} ms"
