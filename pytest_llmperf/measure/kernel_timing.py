"""Result of a kernel timing: samples, their conditions, and roofline shares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from pytest_llmperf.errors import MeasurementError, UsageError
from pytest_llmperf.hardware.clock import MS_PER_S
from pytest_llmperf.hardware.gpu_clocks import ClockState
from pytest_llmperf.measure.sampling import Stop, error_of_median
from pytest_llmperf.stats.summary import percentile
from pytest_llmperf.storage.schema import Warmup
from pytest_llmperf.validation import require_positive
from pytest_llmperf.verdict.model import percent

FLUSH_OFF = "flush_l2 is off"


@dataclass(frozen=True)
class Spread:
    """Spread of samples in milliseconds: median absolute deviation from the median, and the quartiles."""

    mad_ms: float
    lower_quartile_ms: float
    upper_quartile_ms: float


@dataclass(frozen=True)
class Limits:
    """Measured peak rates of a device: bytes that a copy reads and writes, and operations of a matrix product."""

    device: str
    dtype: str
    """The dtype of the matrix product."""
    copy_bytes_per_s: float
    matrix_operations_per_s: float


@dataclass(frozen=True)
class Roofline:
    """Rates that one call reached, and their shares of the measured limits; ``None`` where not given."""

    bytes_per_s: float | None
    copy_share: float | None
    operations_per_s: float | None
    matrix_share: float | None


@dataclass(frozen=True)
class Timing:
    """Times of single calls, in milliseconds. ``str(timing)`` is one readable line."""

    name: str
    """Name of the callable."""
    arguments: str
    """Dtypes and shapes of tensors, the text of numbers and strings, and type names of other arguments."""
    device: str
    clock: str
    samples_ms: tuple[float, ...]
    """One sample per repetition, between two stamps around an eager call."""
    stop: Stop
    """Why eager sampling stopped."""
    graph_samples_ms: tuple[float, ...]
    """One sample per CUDA graph replay: its time divided by its calls. Empty if no graph was used."""
    graph_stop: Stop | None
    """Why replay sampling stopped; ``None`` if no graph was used."""
    wanted_precision: float | None
    """Target relative standard error of each median; ``None`` if the number of samples was given."""
    graph_repetitions: int
    """Calls in one graph."""
    graph_sized: bool
    """Whether the timer chose ``graph_repetitions``, from the time per call."""
    graph_reason: str
    """Why no graph was used; empty if one was."""
    flush_reason: str
    """Why the L2 cache was not flushed before each call; empty if it was."""
    warmup: Warmup
    """Its requests are batches of calls."""
    clocks: tuple[ClockState, ...]
    """Clock readings right before and right after each batch of samples."""
    discarded: int
    """Samples, eager and replayed, that were repeated because the device was throttled."""
    throttled: int
    """Samples kept although the device was throttled: it remained so after several pauses."""

    @property
    def graph_used(self) -> bool:
        """Whether there are samples of graph replays."""
        return not self.graph_reason

    @property
    def flushed_l2(self) -> bool:
        """Whether the L2 cache was flushed before each call, also in the graph."""
        return not self.flush_reason

    @property
    def before(self) -> ClockState:
        """Clocks after warm-up, before the first sample."""
        return self.clocks[0]

    @property
    def after(self) -> ClockState:
        """Clocks right after the last sample."""
        return self.clocks[-1]

    @property
    def held_back(self) -> tuple[str, ...]:
        """Throttle reasons around the samples, by NVML's names, without ``GpuIdle``."""
        told = {reason for state in self.clocks for reason in state.throttle_reasons or ()}
        return tuple(sorted(told - {"GpuIdle"}))

    @property
    def median_ms(self) -> float:
        """Median of the eager calls."""
        return median(self.samples_ms)

    @property
    def precision(self) -> float:
        """Relative standard error of ``median_ms``; infinite for fewer than ten samples."""
        return error_of_median(self.samples_ms)

    @property
    def graph_precision(self) -> float | None:
        """Relative standard error of ``graph_median_ms``; ``None`` if no graph was used."""
        return error_of_median(self.graph_samples_ms) if self.graph_used else None

    @property
    def spread(self) -> Spread:
        """Spread of the eager calls."""
        return _spread(self.samples_ms)

    @property
    def graph_median_ms(self) -> float | None:
        """Median of the replays; ``None`` if no graph was used."""
        return median(self.graph_samples_ms) if self.graph_used else None

    @property
    def graph_spread(self) -> Spread | None:
        """Spread of the replays; ``None`` if no graph was used."""
        return _spread(self.graph_samples_ms) if self.graph_used else None

    def roofline(
        self, *, limits: Limits, bytes_moved: float | None = None, operations: float | None = None
    ) -> Roofline:
        """Compare a call with the device's limits, by the median of the replays, else of the eager calls.

        Args:
            limits: limits of the same device, from :meth:`KernelTimer.limits`.
            bytes_moved: bytes that one call must read and write.
            operations: operations that one call must do; a multiply-add counts as two.

        Raises:
            UsageError: neither is given, one is not above 0, or the limits belong to another device.
            MeasurementError: the clock measured no time.
        """
        if limits.device != self.device:
            raise UsageError(f"roofline: found limits of {limits.device}; expected limits of {self.device}")
        _check_work(bytes_moved=bytes_moved, operations=operations)
        seconds = (self.graph_median_ms or self.median_ms) / MS_PER_S
        if seconds <= 0:
            raise MeasurementError(f"roofline: the clock ({self.clock}) measured no time; expected a longer call")
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
        """Number and precision of the samples, and the target precision if they missed it."""
        error, wanted = error_of_median(samples), self.wanted_precision
        reached = f" ±{percent(error)}" if math.isfinite(error) else ""
        missed = f", target ±{percent(wanted)}" if wanted is not None and error > wanted else ""
        return f"{len(samples)} sample{'s' * (len(samples) != 1)}{reached}{missed}"

    def _clock_words(self) -> list[str]:
        """Problems with the device's clocks."""
        told = {
            f"clocks reduced: {' '.join(self.held_back)}": self.held_back,
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
