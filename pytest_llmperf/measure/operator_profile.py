"""Operator profile of a request: time per operator and kernel, from torch's profiler, for prefill and decode."""

from __future__ import annotations

import gzip
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

from pytest_llmperf.engines.executions.execution import Request
from pytest_llmperf.hardware.clock import NS_PER_MS, Clock
from pytest_llmperf.hardware.profiler import profiler
from pytest_llmperf.storage.schema import OTHERS, OperatorTime, PhaseProfile

PREFILL, DECODE = "prefill", "decode"

PROFILED_REQUESTS = 3
"""Number of profiled requests. The median is used for each operator, so a CPU wait in one request is not attributed to
it."""
PROFILED_TOKENS = 9
"""Most output tokens per request: a few thousand events, which the profiler needs a second to aggregate."""
MOST_OPERATORS = 40
"""Most operators listed, for host and device each; the rest are summed."""
LONGEST_NAME = 300
"""Longest name stored. Template kernels have names of thousands of characters."""

SEEN_INTO = frozenset({"cuda", "xpu"})
"""Devices whose work torch's profiler records; for others, only host work is recorded."""

OUTSIDE = "(outside of operators)"

US_PER_MS = 1e3

Place = Literal["host", "device"]


class OperatorCost(NamedTuple):
    """An operator's self time and number of calls per step."""

    ms: float = 0.0
    calls: float = 0.0


@dataclass(frozen=True)
class Step:
    """A mean step of a phase in one request: its wall time, and the time of each operator."""

    wall_ms: float
    spent: Mapping[tuple[str, Place], OperatorCost]


def profile_request(
    request: Request, output_tokens: int, *, device: str, clock: Clock, traces: Path
) -> dict[str, PhaseProfile]:
    """Make a few requests under the profiler.

    Args:
        request: a request that has run before, so that first-use setup is not profiled.
        output_tokens: the plan's output tokens; at most `PROFILED_TOKENS` are used.
        device: the torch device.
        clock: the device's clock.
        traces: path prefix of the last request's Chrome traces, ``-prefill.json.gz`` and ``-decode.json.gz``.

    Returns:
        By phase, the time per step of each operator and kernel; a single output token has no decode.
    """
    traces.parent.mkdir(parents=True, exist_ok=True)
    steps: defaultdict[str, list[Step]] = defaultdict(list)

    def keep(phase: str, recording: Any, wall_ms: float, count: int) -> None:
        steps[phase].append(step_of(recording.key_averages(), wall_ms, count))
        if len(steps[phase]) == PROFILED_REQUESTS:
            _keep_trace(recording, Path(f"{traces}-{phase}.json.gz"))

    for _ in range(PROFILED_REQUESTS):
        _profile_once(request, min(output_tokens, PROFILED_TOKENS), device, clock, keep)
    return {phase: typical(found) for phase, found in steps.items()}


def step_of(averages: Iterable[Any], wall_ms: float, count: int) -> Step:
    """Build a mean step from ``key_averages()`` of a phase with ``count`` steps that took ``wall_ms`` in total."""
    spent: defaultdict[tuple[str, Place], OperatorCost] = defaultdict(OperatorCost)
    for one in averages:
        if getattr(one, "is_user_annotation", False):
            continue
        place: Place = "host" if one.device_type.name == "CPU" else "device"
        us = one.self_cpu_time_total if place == "host" else one.self_device_time_total
        before = spent[one.key[:LONGEST_NAME], place]
        spent[one.key[:LONGEST_NAME], place] = OperatorCost(
            before.ms + us / US_PER_MS / count, before.calls + one.count / count
        )
    inside_ms = sum(one.ms for (_, place), one in spent.items() if place == "host")
    spent[OUTSIDE, "host"] = OperatorCost(max(0.0, wall_ms / count - inside_ms))
    return Step(wall_ms / count, spent)


def typical(steps: Sequence[Step]) -> PhaseProfile:
    """Median of each figure over the requests; an operator missing from a request counts as 0."""
    keys = dict.fromkeys(key for step in steps for key in step.spent)
    times = [_typical_time(key, [step.spent.get(key, OperatorCost()) for step in steps]) for key in keys]
    of_place = ([one for one in times if one.place == place] for place in ("host", "device"))
    wall_ms = median(step.wall_ms for step in steps)
    return PhaseProfile(wall_ms=round(wall_ms, 6), operators=[one for some in of_place for one in _largest(some)])


def _typical_time(key: tuple[str, Place], spent: Sequence[OperatorCost]) -> OperatorTime:
    ms, calls = median(one.ms for one in spent), median(one.calls for one in spent)
    return OperatorTime(name=key[0], place=key[1], self_ms=round(ms, 6), calls=round(calls, 3))


def _largest(times: Sequence[OperatorTime]) -> list[OperatorTime]:
    ordered = sorted(times, key=lambda one: -one.self_ms)
    named, others = ordered[:MOST_OPERATORS], ordered[MOST_OPERATORS:]
    if not others:
        return named
    ms, calls = sum(one.self_ms for one in others), sum(one.calls for one in others)
    return [*named, OperatorTime(name=OTHERS, place=others[0].place, self_ms=round(ms, 6), calls=round(calls, 3))]


def _profile_once(
    request: Request, tokens: int, device: str, clock: Clock, keep: Callable[[str, Any, float, int], None]
) -> None:
    """Profile one request; ``keep`` is called after the prefill (first token), and after the decode."""
    seen = 0
    with ExitStack() as running:

        def on_token(count: int = 1, /) -> None:
            nonlocal seen
            if not seen and (later := tokens - count):
                running.close()
                running.enter_context(_profiled(device, clock, lambda found, ms: keep(DECODE, found, ms, later)))
            seen += count

        running.enter_context(_profiled(device, clock, lambda found, ms: keep(PREFILL, found, ms, 1)))
        request(tokens, on_token)


@contextmanager
def _profiled(device: str, clock: Clock, keep: Callable[[Any, float], None]) -> Iterator[None]:
    """Profile the block, with the device idle at both ends; ``keep`` gets the profile and the block's milliseconds."""
    kind = device.partition(":")[0]
    recording = profiler(use_device=kind if kind in SEEN_INTO else None)
    clock.synchronize()
    with recording:
        start = time.perf_counter_ns()
        yield
        clock.synchronize()
        wall_ms = (time.perf_counter_ns() - start) / NS_PER_MS
    keep(recording, wall_ms)


def _keep_trace(recording: Any, path: Path) -> None:
    """Save a trace compressed, which trace viewers accept: traces with a thousand events per step are large."""
    plain = path.with_suffix("")
    recording.export_chrome_trace(str(plain))
    with plain.open("rb") as source, gzip.open(path, "wb") as target:
        shutil.copyfileobj(source, target)
    plain.unlink()
