"""Figures of counted work: per prefill, per token of decode, and growth from step to step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pytest_llmperf.measure.work import StepWork, WorkCounter
from pytest_llmperf.metrics import METRICS, NO_DECODE, ONE_STEP, SEVERAL_AT_A_TIME, Figure
from pytest_llmperf.storage.schema import PhaseWork


@dataclass(frozen=True)
class _Quantity:
    """One kind of work: its name in metrics, and its number in a step."""

    name: str
    total: Callable[[StepWork], int]
    words: str
    grows: bool = True
    """Whether there is a metric of its growth."""

    def lacking(self, work: StepWork) -> str:
        """Why the number is not known; empty if it is."""
        if self.name != "flops" or not work.without_formula:
            return ""
        return f"no formula for the FLOPs of {', '.join(sorted(work.without_formula))}"


_FLOPS = _Quantity("flops", lambda work: work.flops.total(), "FLOPs")
_BYTES = _Quantity("moved_bytes", lambda work: work.bytes.total(), "bytes moved")
_QUANTITIES = (
    _Quantity("operators", lambda work: work.operators.total(), "operators"),
    _FLOPS,
    _BYTES,
    _Quantity("allocations", lambda work: work.allocations, "allocations", grows=False),
    _Quantity("allocated_bytes", lambda work: work.allocated_bytes, "allocated bytes", grows=False),
)


def work_figures(count: WorkCounter) -> list[Figure]:
    """Figures of a request that was counted to its last token.

    FLOPs of a phase are ``None`` if one of its operators has no formula, and the reason names it.
    """
    decode = count.decode
    figures = [figure for quantity in _QUANTITIES for figure in _figures(quantity, count, decode)]
    return [*figures, _intensity(count, decode)]


def _figures(quantity: _Quantity, count: WorkCounter, decode: StepWork | None) -> Iterator[Figure]:
    prefill = count.steps[0]
    per_token = f"{quantity.name}_per_token"
    if decode is None:
        yield Figure(per_token, None, _no_decode(count))
    else:
        yield _figure(per_token, quantity, decode, quantity.total(decode) / count.later_tokens)
    yield _figure(f"prefill_{quantity.name}", quantity, prefill, quantity.total(prefill))
    if quantity.grows:
        yield _growth(quantity, count, decode)


def _growth(quantity: _Quantity, count: WorkCounter, decode: StepWork | None) -> Figure:
    metric, steps = f"{quantity.name}_growth", count.steps[1:]
    if decode is None:
        return Figure(metric, None, _no_decode(count))
    if len(steps) == 1:
        return Figure(metric, None, ONE_STEP)
    more = quantity.total(steps[-1]) - quantity.total(steps[0])
    return _figure(metric, quantity, decode, more / (len(steps) - 1))


def _intensity(count: WorkCounter, decode: StepWork | None) -> Figure:
    if decode is None:
        return Figure("intensity", None, _no_decode(count))
    moved = _BYTES.total(decode)
    if not moved:
        return Figure("intensity", None, "decode moves no bytes")
    return _figure("intensity", _FLOPS, decode, _FLOPS.total(decode) / moved)


def _figure(metric: str, quantity: _Quantity, work: StepWork, value: float) -> Figure:
    lacking = quantity.lacking(work)
    return Figure(metric, None, lacking) if lacking else Figure(metric, value)


def _no_decode(count: WorkCounter) -> str:
    """Why there is no decode: one token was produced, or all tokens came at the same time."""
    return NO_DECODE if sum(count.tokens) == 1 else SEVERAL_AT_A_TIME


def agreeing_figures(first: Sequence[Figure], second: Sequence[Figure], source: str) -> list[Figure]:
    """The first figures, each ``None`` if a second request, with another prompt, has another value.

    Args:
        first: figures of one request.
        second: those of another, by the same metrics in the same order.
        source: what the work depends on, for the reason.
    """
    return [_agreeing(one, other, source) for one, other in zip(first, second, strict=True)]


def _agreeing(one: Figure, other: Figure, source: str) -> Figure:
    if one.value == other.value:
        return one
    if one.value is None or other.value is None:
        return one if one.value is None else other
    values = f"{one.value:.10g} and {other.value:.10g} {_words(one.metric)}"
    return Figure(one.metric, None, f"depends on the data: {values} with two prompts ({source})")


def _words(metric: str) -> str:
    found = (quantity.words for quantity in _QUANTITIES if quantity.name in metric)
    return next(found, METRICS[metric].title)


def agreeing_phases(first: Mapping[str, PhaseWork], second: Mapping[str, PhaseWork]) -> dict[str, PhaseWork]:
    """Phases whose work is the same in both requests."""
    return {name: work for name, work in first.items() if second.get(name) == work}
