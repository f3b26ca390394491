"""Guards: conditions during a measurement that make its result invalid, such as throttling or other processes.

``watch`` reads the conditions of every measurement in its block that reports phases and timed requests to the bench's
progress.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass

from pytest_llmperf.errors import UsageError
from pytest_llmperf.hardware.cpu_monitor import HostConditions, HostWatch
from pytest_llmperf.hardware.gpu_monitor import GpuConditions, GpuWatch, UnreadableGpu, watch_gpu
from pytest_llmperf.measure.progress import TIMED_REQUESTS, Progress
from pytest_llmperf.metrics import Scalar
from pytest_llmperf.storage.schema import Observation
from pytest_llmperf.verdict.model import percent

MOST_OF_OTHERS = 0.25
"""Share of the processors' time. Smaller shares are handled by `measure.contention`, which repeats requests. Larger
ones use caches and memory bandwidth all the time, which waiting times do not show."""
LEAST_CLOCK = 0.5
"""Share of the highest clock allowed. NVML calls a clock reduced to half or less a hardware slowdown; above that, power
limits and locked clocks are normal."""
HELD_BACK = frozenset({"HwSlowdown", "HwThermalSlowdown", "HwPowerBrakeSlowdown", "SwThermalSlowdown"})
"""Heat and power failure, by NVML's names. A power cap is excluded: many devices run at theirs all the time."""
MOST_THERMAL = 0.01
"""Share of the timed requests' time. Where the hardware halves the clock, this costs 1 % more time: half of a verdict's
tolerance. The other counted limits are no objection: power caps for the reason above, and board and voltage limits
because it is unknown how common they are."""
MOST_DISTURBED = 0.5
"""Share of the kept requests. A run's figure is their median: above this share, the median is a disturbed request."""


@dataclass(frozen=True, kw_only=True)
class ObservedConditions:
    """Conditions observed during one measurement."""

    device: str
    host: HostConditions
    gpu: GpuConditions | None
    misplaced: str
    """Which of the model's tensors are on the wrong device; empty if none."""
    requests: int
    disturbed: int | None

    @property
    def conditions(self) -> dict[str, Scalar]:
        """All readings, for the record."""
        return asdict(self.host) | (asdict(self.gpu) if self.gpu else {})

    def objection(self, guards: frozenset[str]) -> str:
        """Why these guards invalidate the measurement; empty if they do not."""
        found = {name: GUARDS[name](self) for name in GUARDS if name in guards}
        return "; ".join(by_guard(name, why) for name, why in found.items() if why)


class Watch:
    """Reads conditions from creation until ``close``."""

    def __init__(self, device: str, gpu: GpuWatch | UnreadableGpu | None) -> None:
        self.gpu = gpu
        self._device = device
        self._host = HostWatch()
        self._timing = False
        self._conditions: tuple[HostConditions, GpuConditions | None]

    def close(self) -> None:
        """Take the last readings. In serving, the timed requests are the last phase."""
        self.enter("")
        self._conditions = self._host.conditions(), self.gpu.conditions() if self.gpu else None

    def enter(self, phase: str) -> None:
        """Begin a phase; start or stop reading if it is, or follows, the timed requests."""
        if phase == TIMED_REQUESTS:
            for one in self._parts:
                one.begin()
        elif self._timing:
            for one in self._parts:
                one.end()
        self._timing = phase == TIMED_REQUESTS

    def request(self, _times: object) -> None:
        """Read the GPU after a timed request."""
        if self.gpu:
            self.gpu.look()

    def observed(self, observation: Observation, *, misplaced: str) -> ObservedConditions:
        """The readings until ``close``, and the findings of the measurement itself."""
        host, gpu = self._conditions
        return ObservedConditions(
            device=self._device,
            host=host,
            gpu=gpu,
            misplaced=misplaced,
            requests=observation.requests,
            disturbed=observation.disturbed_requests,
        )

    @property
    def _parts(self) -> list[HostWatch | GpuWatch | UnreadableGpu]:
        return [self._host, *([self.gpu] if self.gpu else [])]


@contextmanager
def watch(device: str, progress: Progress) -> Iterator[Watch]:
    """Watch a measurement in the block, as the first watcher to be notified of a request's end."""
    with watch_gpu(device) if device.startswith("cuda") else nullcontext() as gpu:
        found = Watch(device, gpu)
        progress.watchers.insert(0, found)
        try:
            yield found
            found.close()
        finally:
            progress.watchers.remove(found)


def parse_guards(text: str) -> frozenset[str]:
    """Parse comma-separated guard names, or ``all`` or ``none``.

    Raises:
        UsageError: a guard is unknown.
    """
    names = {part.strip() for part in text.split(",") if part.strip()}
    if names in ({"all"}, {"none"}):
        return frozenset(GUARDS if names == {"all"} else ())
    if not names or not names <= set(GUARDS):
        raise UsageError(f"--llmperf-guards {text!r}: expected all, none, or some of {', '.join(GUARDS)}")
    return frozenset(names)


def by_guard(guard: str, why: str) -> str:
    """Why a measurement is invalid, and the guard to disable to compare it anyway."""
    return f"{why} (guard {guard})"


def throttled(device: str, reasons: Iterable[str]) -> str:
    """Message for the throttle reasons that invalidate a measurement; empty if there are none."""
    held = [reason for reason in reasons if reason in HELD_BACK]
    return f"clocks of {device} reduced by {', '.join(held)}" if held else ""


def _tenants(observed: ObservedConditions) -> str:
    others = observed.gpu.other_processes_on_device if observed.gpu else None
    return f"{others} other process{'es' * (others != 1)} on {observed.device}" if others else ""


def _throttling(observed: ObservedConditions) -> str:
    """Check the readings right after requests, and the driver's counters between them."""
    if not observed.gpu:
        return ""
    return throttled(observed.device, (observed.gpu.throttle_reasons or "").split()) or _too_hot(
        observed.device, observed.gpu
    )


def _too_hot(device: str, gpu: GpuConditions) -> str:
    share, most = gpu.thermal_violation_share, percent(MOST_THERMAL)
    if share is None or share <= MOST_THERMAL:
        return ""
    return f"clocks of {device} reduced by heat for {percent(share)} of the time, expected {most} at most"


def _clocks(observed: ObservedConditions) -> str:
    if not observed.gpu or observed.gpu.sm_clock_under_load_mhz is None or observed.gpu.sm_clock_full_mhz is None:
        return ""
    found, full = observed.gpu.sm_clock_under_load_mhz, observed.gpu.sm_clock_full_mhz
    slow = found < LEAST_CLOCK * full
    return f"SM clock {found:g} of {full} MHz under load, expected {percent(LEAST_CLOCK)} or more" if slow else ""


def _placement(observed: ObservedConditions) -> str:
    return f"the model has {observed.misplaced}" if observed.misplaced else ""


def _load(observed: ObservedConditions) -> str:
    """Only on CPUs: the host of an accelerator has processors to spare."""
    share = observed.host.other_processes_cpu_share if observed.device == "cpu" else None
    if share is None or share <= MOST_OF_OTHERS:
        return ""
    return f"other processes took {percent(share)} of CPU time, expected {percent(MOST_OF_OTHERS)} at most"


def _disturbance(observed: ObservedConditions) -> str:
    if observed.disturbed is None or observed.disturbed <= MOST_DISTURBED * observed.requests:
        return ""
    most = percent(MOST_DISTURBED)
    return f"CPU contention slowed {observed.disturbed} of {observed.requests} requests, expected {most} at most"


GUARDS: Mapping[str, Callable[[ObservedConditions], str]] = {
    "tenants": _tenants,
    "throttling": _throttling,
    "clocks": _clocks,
    "placement": _placement,
    "load": _load,
    "disturbance": _disturbance,
}
"""Each guard returns its objection, or an empty string. Unknown values cause no objection."""
