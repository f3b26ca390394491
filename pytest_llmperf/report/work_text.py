"""Format a change of counted work: one line, and a section with the details."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pytest_llmperf.metrics import METRICS
from pytest_llmperf.report.text_table import indented, wrapped
from pytest_llmperf.report.time_text import STEPS
from pytest_llmperf.text import cut, printable
from pytest_llmperf.verdict.model import since
from pytest_llmperf.verdict.sentence import format_value
from pytest_llmperf.verdict.work_change import CountChange, WorkChange

SAME_WORK = "the same operators, FLOPs and bytes"
MENTIONED, MOST_LISTED = 3, 12
"""Maximum of operators named in the line, and in the details."""
LONGEST_NAME = 48
GROWS = 2.0
"""Minimum ratio of growths that the line mentions; the details have all."""
READABLE_RATIO, UNREADABLE_RATIO = 100.0, 1e6

_JOINT = "\N{NO-BREAK SPACE}"
"""Where a line must not be wrapped; names have none, because `printable` escapes it."""
_LABELS = {
    "operators": "operators",
    "flops": "FLOPs",
    "bytes": "bytes",
    "allocations": "allocations",
    "allocated_bytes": "allocated",
}
_METRIC_OF = {
    "operators": "operators_per_token",
    "flops": "flops_per_token",
    "bytes": "moved_bytes_per_token",
    "allocations": "allocations_per_token",
    "allocated_bytes": "allocated_bytes_per_token",
}


def work_line(change: WorkChange, width: int | None = None, *, first: str = "") -> str:
    """Return what changed in one line; it names fewer operators if that makes it fit in ``width`` columns.

    Args:
        change: of one phase.
        width: columns; ``None`` for any number.
        first: name of the total that leads; operators do if there is none.

    Example: ``decode: +35 operators a token: aten::_to_copy 9 -> 27, ...; FLOPs ×1.00; bytes ×1.12 (+3.1 MiB: ...)``.
    """
    return _plain(_fitting(change, width, first))


def wrapped_work_line(change: WorkChange, width: int, *, first: str, more: str = "") -> str:
    """Return the line and more words, wrapped to ``width`` columns between operators."""
    return _plain(wrapped(f"{_fitting(change, width, first)}{more}", width))


def work_section(change: WorkChange, width: int, *, told: str | None = None) -> Iterator[str]:
    """Yield a title and the details, in at most ``width`` columns.

    Args:
        change: of one phase.
        width: columns.
        told: total that leads the line, if the line was shown before; otherwise the details begin with the line.
    """
    line = _fitting(change, None if told is None else width, told or "")
    details = [f"{label}: {text}" for label, text in _details(change, line)]
    lines = [*([line.partition(": ")[2]] if told is None else []), *details] or ["nothing else"]
    title = f"{_title(change)}:"
    if len(lines) == 1 and not details:
        title, lines = f"{title} {lines[0]}", []
    yield from (_plain(wrapped(title, width)), *(_plain(indented(text, width)) for text in lines))


def _plain(text: str) -> str:
    return text.replace(_JOINT, " ")


def _title(change: WorkChange) -> str:
    beside = f", beside {change.base}" if change.base and not change.reason else ""
    return printable(f"counted work per {STEPS[change.phase]} in {change.phase}{beside}{since(change.against)}")


def _fitting(change: WorkChange, width: int | None, first: str) -> str:
    lines = [_line(change, most, first) for most in range(MENTIONED, 0, -1)]
    return next((line for line in lines if width is None or len(line) <= width), lines[0])


def _line(change: WorkChange, most: int, first: str) -> str:
    if change.reason:
        return printable(f"{change.phase}: not compared: {change.reason}")
    if change.is_equal:
        return f"{change.phase}: {SAME_WORK}"
    clauses = {
        "operators": _operators(change, most),
        "flops": _amount(change, "flops"),
        "bytes": _amount(change, "bytes"),
    }
    if not (change.operators or change.flops or change.bytes):
        told = [SAME_WORK, *_allocations(change), *_growth(change)]
    else:
        leading = [clauses.pop(first)] if first in clauses else [*_allocations(change)] if first else []
        told = [*leading, *clauses.values()]
    return f"{change.phase}: {'; '.join(told)}"


def _operators(change: WorkChange, most: int) -> str:
    more = change.total("operators").difference
    grows = _growing(change, "operators")
    if not change.operators:
        return f"the same operators{grows}"
    count = f"{_signed('operators', more)} operators" if more else "as many operators"
    return f"{count} a {STEPS[change.phase]}: {_listed('operators', change.operators, most)}{grows}"


def _amount(change: WorkChange, name: str) -> str:
    """Return the ratio of FLOPs or bytes, the increase with the dtype that changed most, and the growth."""
    total, by_dtype = change.total(name), change.flops if name == "flops" else change.bytes
    if total.ratio is None and total.after:
        ratio = f" {_values(name, total)}"
    else:
        ratio = f" ×{_ratio(1.0 if total.ratio is None else total.ratio)}"
    return f"{_LABELS[name]}{ratio}{_by_dtype(name, total, by_dtype)}{_growing(change, name)}"


def _by_dtype(name: str, total: CountChange, by_dtype: Sequence[CountChange]) -> str:
    if not by_dtype:
        return ""
    increase = _signed(name, total.difference) if total.difference else ""
    largest = by_dtype[0]
    own = _signed(name, largest.difference)
    words = [f"{increase}:" if increase else "", _name(largest.name), "" if own == increase else own]
    return f" ({' '.join(filter(None, words))})"


def _growing(change: WorkChange, name: str) -> str:
    """Return how much a total grows with each token, if that is at least doubled or halved."""
    grown = change.grown(name)
    if grown is None or (grown.ratio is not None and 1 / GROWS < grown.ratio < GROWS):
        return ""
    word = "grow" if grown.after >= 0 else "shrink"
    now, then = (_value(name, amount) for amount in (abs(grown.after), grown.before))
    return f", and {word} by {now} a {STEPS[change.phase]} ({then} before)"


def _allocations(change: WorkChange) -> Iterator[str]:
    counts = [change.total(name) for name in ("allocations", "allocated_bytes")]
    if changed := [f"{_LABELS[one.name]} {_values(one.name, one)}" for one in counts if one.difference]:
        yield ", ".join(changed)


def _growth(change: WorkChange) -> Iterator[str]:
    if change.growth:
        growth = ", ".join(f"{_LABELS[one.name]}{_JOINT}{_values(one.name, one)}" for one in change.growth)
        yield f"{growth} more with each {STEPS[change.phase]}"


def _details(change: WorkChange, line: str) -> Iterator[tuple[str, str]]:
    """Yield what the line leaves out, each with a label."""
    if not change.differs:
        return
    if (listed := _listed("operators", change.operators, MOST_LISTED)) not in line:
        yield "operators", f"{_values('operators', change.total('operators'))}: {listed}"
    for name, by_dtype in (("flops", change.flops), ("bytes", change.bytes)):
        if by_dtype:
            dtypes = f": {_listed(name, by_dtype, MOST_LISTED)}" if len(by_dtype) > 1 else ""
            yield _LABELS[name], f"{_values(name, change.total(name))}{dtypes}"
    for text in _allocations(change):
        yield "memory", text
    yield from (("growth", text) for text in _growth(change))
    if change.without_formula:
        yield "FLOPs not counted", _some([_name(name) for name in change.without_formula], MOST_LISTED)


def _listed(kind: str, changes: Sequence[CountChange], most: int) -> str:
    return _some([f"{_name(one.name)}{_JOINT}{_values(kind, one)}" for one in changes], most)


def _some(named: Sequence[str], most: int) -> str:
    more = f" and {len(named) - most} more" if len(named) > most else ""
    return ", ".join(named[:most]) + more


def _name(name: str) -> str:
    """Return a name as one word, so that no part of it begins a line, where a GitHub runner reads commands."""
    return cut(printable(name), LONGEST_NAME).replace(" ", _JOINT)


def _values(kind: str, change: CountChange) -> str:
    """Format both counts with as many digits as show that they differ; one, if they are equal."""
    if not change.difference:
        return _value(kind, change.after)
    for digits in range(3, 17):
        before, after = (_value(kind, amount, digits) for amount in (change.before, change.after))
        if before != after:
            break
    return f"{before}{_JOINT}->{_JOINT}{after}"


def _signed(kind: str, amount: float) -> str:
    return f"{'-' if amount < 0 else '+'}{_value(kind, abs(amount))}"


def _value(kind: str, amount: float, digits: int = 3) -> str:
    return format_value(METRICS[_METRIC_OF[kind]], amount, digits=digits).replace(" ", _JOINT)


def _ratio(ratio: float) -> str:
    """Format to two decimals, or to as many as show that it is not 1."""
    if ratio >= READABLE_RATIO:
        return f"{ratio:.0f}" if ratio < UNREADABLE_RATIO else f"{ratio:.3g}"
    shown = [f"{ratio:.{digits}f}" for digits in range(2, 16)]
    return next((text for text in shown if (float(text) == 1.0) == (ratio == 1.0)), shown[-1])
