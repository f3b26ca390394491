"""Inject slowdowns, held memory or smaller batches into a model's requests, to prove that a gate detects them."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, count, repeat
from statistics import median
from typing import TYPE_CHECKING, Any, TypeVar

from pytest_llmperf.errors import UsageError
from pytest_llmperf.hardware.clock import NS_PER_MS, Clock

if TYPE_CHECKING:
    import torch

_Result = TypeVar("_Result")
_Work = Callable[[], object]

FORMS = "work:+15%, sleep:+15%, sleep:2ms, hold:64MiB or batch:-25%"

_BYTES = {"KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
_NUMBER = r"(\d+(?:\.\d+)?)"


@dataclass(frozen=True)
class Delay:
    """Lengthens each forward of the model: by matrix products (``work``) or by a wait (``sleep``).

    ``share`` is relative to the undelayed step time (TTFT for the prefill, TPOT for decode); ``ms`` is milliseconds.
    """

    kind: str
    share: float = 0.0
    ms: float = 0.0

    def __str__(self) -> str:
        return f"{self.kind}:{self.ms:g}ms" if self.ms else f"{self.kind}:+{100 * self.share:g}%"

    def of(self, step_ms: float) -> float:
        """Milliseconds to add to a step that takes ``step_ms``."""
        return self.ms + self.share * step_ms


@dataclass(frozen=True)
class Hold:
    """Memory held on the device during decode: allocated but never written."""

    mib: float

    def __str__(self) -> str:
        return f"hold:{self.mib:g}MiB"


@dataclass(frozen=True)
class SmallerBatch:
    """Fewer sequences per request than planned, as if a scheduler admitted fewer."""

    share: float

    def __str__(self) -> str:
        return f"batch:-{100 * self.share:g}%"

    def of(self, batch_size: int) -> int:
        """The reduced batch size.

        Raises:
            UsageError: the result is not smaller, or is 0.
        """
        left = round(batch_size * (1 - self.share))
        if not 0 < left < batch_size:
            raise UsageError(
                f"--llmperf-inject {self}: a batch of {batch_size} would become {left}; expected fewer, at least 1"
            )
        return left


Injection = Delay | Hold | SmallerBatch


@dataclass(frozen=True)
class StepTimes:
    """Step times of a request without injections, in milliseconds."""

    prefill_ms: float
    decode_ms: float


def parse_injection(text: str) -> Injection | None:
    """Parse an injection such as ``work:+15%`` (see `FORMS`); ``None`` if its kind is not one of these.

    Raises:
        UsageError: the kind is known but the amount is malformed or 0.
    """
    kind, _, amount = text.strip().partition(":")
    if kind not in {"work", "sleep", "hold", "batch"}:
        return None
    injection = {"hold": _hold, "batch": _smaller_batch}.get(kind, partial(_delay, kind))(amount)
    if injection is None:
        raise UsageError(f"--llmperf-inject {text!r}: expected an amount above 0, as in {FORMS}")
    return injection


def inject(  # noqa: PLR0913  # a request, its device, and its injections
    request: Callable[..., _Result],
    injections: Sequence[Injection],
    *,
    model: Any,
    steps: StepTimes,
    device: str,
    clock: Clock,
) -> Callable[..., _Result]:
    """Wrap a request so that the injections apply to each forward while it runs.

    Args:
        request: makes one request; its first forward is the prefill, each later one a decode step.
        injections: the injections to apply.
        model: the model whose forwards are hooked.
        steps: step times without injections.
        device: the device for the injected work.
        clock: the device's clock, used to size the work.
    """
    hooks = [
        _prepared(injection, steps, device, clock)
        for injection in injections
        if not isinstance(injection, SmallerBatch)
    ]

    def injected(*arguments: Any) -> _Result:
        with ExitStack() as stack:
            for hook in hooks:
                stack.enter_context(hook(model))
            return request(*arguments)

    return injected


def reduced_batch_size(batch_size: int, injections: Sequence[Injection]) -> int:
    """The batch size left after injected reductions.

    Raises:
        UsageError: the batch size is not reduced, or becomes 0.
    """
    for injection in injections:
        if isinstance(injection, SmallerBatch):
            batch_size = injection.of(batch_size)
    return batch_size


def _smaller_batch(amount: str) -> SmallerBatch | None:
    found = re.fullmatch(rf"-{_NUMBER}%", amount)
    return SmallerBatch(float(found[1]) / 100) if found and float(found[1]) else None


def _hold(amount: str) -> Hold | None:
    found = re.fullmatch(rf"{_NUMBER}({'|'.join(_BYTES)})", amount)
    mib = float(found[1]) * _BYTES[found[2]] / _BYTES["MiB"] if found else 0.0
    return Hold(mib) if mib else None


def _delay(kind: str, amount: str) -> Delay | None:
    share, ms = re.fullmatch(rf"\+{_NUMBER}%", amount), re.fullmatch(rf"{_NUMBER}ms", amount)
    delay = Delay(kind, share=float(share[1]) / 100 if share else 0.0, ms=float(ms[1]) if ms else 0.0)
    return delay if delay.share or delay.ms else None


def _prepared(
    injection: Delay | Hold, steps: StepTimes, device: str, clock: Clock
) -> Callable[[Any], AbstractContextManager[None]]:
    if isinstance(injection, Hold):
        return partial(_held_in_decode, size=int(injection.mib * _BYTES["MiB"]), device=device)
    make = _products if injection.kind == "work" else _wait
    prefill, decode = (make(injection.of(step), device, clock) for step in (steps.prefill_ms, steps.decode_ms))
    return partial(_after_forwards, prefill=prefill, decode=decode)


@contextmanager
def _after_forwards(model: Any, *, prefill: _Work, decode: _Work) -> Iterator[None]:
    """Run work after each forward. Before it, the work would overlap with the host's kernel launches."""
    works = chain([prefill], repeat(decode))

    def hook(*_: object) -> None:
        next(works)()

    handle = model.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _held_in_decode(model: Any, *, size: int, device: str) -> Iterator[None]:
    import torch

    held: list[torch.Tensor] = []
    forwards = count()

    def hook(*_: object) -> None:
        if next(forwards) == 1:
            held.append(torch.empty(size, dtype=torch.uint8, device=device))

    handle = model.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _wait(ms: float, device: str, clock: Clock) -> _Work:
    """Wait on device and host in parallel, so that whichever is the bottleneck takes that much longer."""
    import torch

    sleep = getattr(getattr(torch, torch.device(device).type), "_sleep", None)
    cycles = int(ms * _cycles_per_ms(sleep, clock)) if sleep and ms else 0

    def wait() -> None:
        if sleep:
            sleep(cycles)
        else:
            clock.synchronize()
        end = time.perf_counter_ns() + ms * NS_PER_MS
        while time.perf_counter_ns() < end:
            pass

    return wait


_PROBE_CYCLES = 10_000_000


def _cycles_per_ms(sleep: Callable[[int], None], clock: Clock) -> float:
    return _PROBE_CYCLES / _median_ms(lambda: sleep(_PROBE_CYCLES), clock)


_SMALLEST, _LARGEST = 32, 4096
_FEWEST = 16
"""Fewest matrix products in a delay: their number is an integer, and few would make the delay coarse."""
_BURST = 8


def _products(ms: float, device: str, clock: Clock) -> _Work:
    """Matrix products that together take this long, with matrices as large as `_FEWEST` allows."""
    size, each = _SMALLEST, _product_ms(_SMALLEST, device, clock)
    while size < _LARGEST and (larger := _product_ms(2 * size, device, clock)) <= ms / _FEWEST:
        size, each = 2 * size, larger
    return _multiply(size, round(ms / each), device)


def _product_ms(size: int, device: str, clock: Clock) -> float:
    return _median_ms(_multiply(size, _BURST, device), clock) / _BURST


def _multiply(size: int, times: int, device: str) -> _Work:
    import torch

    factor, product = torch.full((size, size), 0.5, device=device), torch.empty(size, size, device=device)

    def multiply() -> None:
        for _ in range(times):
            torch.mm(factor, factor, out=product)

    return multiply


def _median_ms(work: _Work, clock: Clock, times: int = 5) -> float:
    """Median milliseconds that work takes on the device, excluding its first run."""
    durations = []
    for _ in range(times + 1):
        clock.synchronize()
        start = clock.stamp()
        work()
        end = clock.stamp()
        clock.synchronize()
        durations.append(clock.elapsed_ms(start, end))
    return median(durations[1:])
