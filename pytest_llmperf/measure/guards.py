"""Guards: what must not have been the case while requests were timed, and what is read around them to tell.

Whatever is measured inside of ``watch`` is watched, if it tells the bench's progress of its phases and timed requests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass

from pytest_llmperf.errors import UsageError
from pytest_llmperf.hardware.cpu_monitor import HostConditions, HostWatch
from pytest_llmperf.hardware.gpu_monitor import GpuConditions, GpuWatch, UnreadGpu, watch_gpu
from pytest_llmperf.measure.progress import TIMED_REQUESTS, Progress
from pytest_llmperf.metrics import Scalar
from pytest_llmperf.storage.schema import Observation
from pytest_llmperf.verdict.model import percent

MOST_OF_OTHERS = 0.25
"""Share of the processors' time. Less is what `measure.contention` repeats requests for; more shares caches and
memory with them all the time, which no waiting tells of."""
LEAST_CLOCK = 0.5
"""Of the clock that the device may run at. NVML calls a clock that is halved or worse a slowdown by the hardware; above
that, power limits and clocks that somebody locked are ordinary."""
HELD_BACK = frozenset({"HwSlowdown", "HwThermalSlowdown", "HwPowerBrakeSlowdown", "SwThermalSlowdown"})
"""Heat and failing power, in NVML's words. A power cap is no such reason: many devices run at theirs all the time."""
MOST_THERMAL = 0.01
"""Share of the timed requests' time. Where the hardware halves the clock, that is 1 % more time: half of what a verdict
tolerates. The driver counts other limits as well, of which none is an objection: a power cap for the reason above, and
board and voltage limits because nothing tells how ordinary they are."""
MOST_DISTURBED = 0.5
"""Share of the kept requests. The run's figure is their median: from here on, it is a disturbed one."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What was seen around one measurement."""

    device: str
    host: HostConditions
    gpu: GpuConditions | None
    misplaced: str
    """Which of the model's tensors is not where it should be; empty if none."""
    requests: int
    disturbed: int | None

    @property
    def conditions(self) -> dict[str, Scalar]:
        """All that was read, to be recorded."""
        return asdict(self.host) | (asdict(self.gpu) if self.gpu else {})

    def objection(self, guards: frozenset[str]) -> str:
        """Why nothing that was timed may be compared, by those guards; empty if it may."""
        found = {name: GUARDS[name](self) for name in GUARDS if name in guards}
        return "; ".join(by_guard(name, why) for name, why in found.items() if why)


class Watch:
    """Follows a measurement from its making until it is closed."""

    def __init__(self, device: str, gpu: GpuWatch | UnreadGpu | None) -> None:
        self.gpu = gpu
        self._device = device
        self._host = HostWatch()
        self._timing = False
        self._conditions: tuple[HostConditions, GpuConditions | None]

    def close(self) -> None:
        """Read for the last time; of serving, the timed requests are the last phase."""
        self.enter("")
        self._conditions = self._host.conditions(), self.gpu.conditions() if self.gpu else None

    def enter(self, phase: str) -> None:
        """A phase begins: the timed requests, or the one after them."""
        if phase == TIMED_REQUESTS:
            for one in self._parts:
                one.begin()
        elif self._timing:
            for one in self._parts:
                one.end()
        self._timing = phase == TIMED_REQUESTS

    def request(self, _times: object) -> None:
        """A timed request has ended."""
        if self.gpu:
            self.gpu.look()

    def seen(self, observation: Observation, *, misplaced: str) -> Seen:
        """What was read until it was closed, and what measuring itself found."""
        host, gpu = self._conditions
        return Seen(
            device=self._device,
            host=host,
            gpu=gpu,
            misplaced=misplaced,
            requests=observation.requests,
            disturbed=observation.disturbed_requests,
        )

    @property
    def _parts(self) -> list[HostWatch | GpuWatch | UnreadGpu]:
        return [self._host, *([self.gpu] if self.gpu else [])]


@contextmanager
def watch(device: str, progress: Progress) -> Iterator[Watch]:
    """Watch what is measured inside the block; nobody hears of the end of a request earlier."""
    with watch_gpu(device) if device.startswith("cuda") else nullcontext() as gpu:
        found = Watch(device, gpu)
        progress.watchers.insert(0, found)
        try:
            yield found
            found.close()
        finally:
            progress.watchers.remove(found)


def parse_guards(text: str) -> frozenset[str]:
    """Guards from their names, comma-separated; ``all`` and ``none`` stand for themselves.

    Raises:
        UsageError: there is no such guard.
    """
    names = {part.strip() for part in text.split(",") if part.strip()}
    if names in ({"all"}, {"none"}):
        return frozenset(GUARDS if names == {"all"} else ())
    if not names or not names <= set(GUARDS):
        raise UsageError(f"--llmperf-guards {text!r}: expected all, none, or some of {', '.join(GUARDS)}")
    return frozenset(names)


def by_guard(guard: str, why: str) -> str:
    """Why what was timed is invalid, and which guard to leave out for it to be compared."""
    return f"{why} (guard {guard})"


def throttled(device: str, reasons: Iterable[str]) -> str:
    """Which of NVML's reasons for low clocks keep what was timed from being compared; empty if none does."""
    held = [reason for reason in reasons if reason in HELD_BACK]
    return f"clocks of {device} held back by {', '.join(held)}" if held else ""


def _tenants(seen: Seen) -> str:
    others = seen.gpu.other_processes_on_device if seen.gpu else None
    return f"{others} other process{'es' * (others != 1)} on {seen.device}" if others else ""


def _throttling(seen: Seen) -> str:
    """By a look right after a request, or by what was counted between looks."""
    if not seen.gpu:
        return ""
    return throttled(seen.device, (seen.gpu.throttle_reasons or "").split()) or _too_hot(seen.device, seen.gpu)


def _too_hot(device: str, gpu: GpuConditions) -> str:
    share, most = gpu.thermal_violation_share, percent(MOST_THERMAL)
    if share is None or share <= MOST_THERMAL:
        return ""
    return f"clocks of {device} held back by heat for {percent(share)} of the time, expected {most} at most"


def _clocks(seen: Seen) -> str:
    if not seen.gpu or seen.gpu.sm_clock_under_load_mhz is None or seen.gpu.sm_clock_full_mhz is None:
        return ""
    found, full = seen.gpu.sm_clock_under_load_mhz, seen.gpu.sm_clock_full_mhz
    slow = found < LEAST_CLOCK * full
    return f"{found:g} of {full} MHz under load, expected {percent(LEAST_CLOCK)} or more" if slow else ""


def _placement(seen: Seen) -> str:
    return f"the model has {seen.misplaced}" if seen.misplaced else ""


def _load(seen: Seen) -> str:
    """An accelerator's host has processors to spare."""
    share = seen.host.other_processes_cpu_share if seen.device == "cpu" else None
    if share is None or share <= MOST_OF_OTHERS:
        return ""
    return f"other processes took {percent(share)} of the processors' time, expected {percent(MOST_OF_OTHERS)} at most"


def _disturbance(seen: Seen) -> str:
    if seen.disturbed is None or seen.disturbed <= MOST_DISTURBED * seen.requests:
        return ""
    return f"{seen.disturbed} of {seen.requests} requests waited for processors that others held"


GUARDS: Mapping[str, Callable[[Seen], str]] = {
    "tenants": _tenants,
    "throttling": _throttling,
    "clocks": _clocks,
    "placement": _placement,
    "load": _load,
    "disturbance": _disturbance,
}
"""Why each objects; empty if it does not. What was not told is no reason to object."""
