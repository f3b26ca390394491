"""Format a verdict as one line: both values in scaled units, the ratio, its interval and the limit."""

from __future__ import annotations

import math

from pytest_llmperf.metrics import Kind, Metric
from pytest_llmperf.stats.interval import Interval
from pytest_llmperf.text import plural
from pytest_llmperf.verdict.exact import limit_value
from pytest_llmperf.verdict.model import Outcome, Verdict, evidence, number, percent, since

_SCALES = {
    "ms": ((1e3, "s"), (1.0, "ms"), (1e-3, "us")),
    "bytes": ((1024.0**3, "GiB"), (1024.0**2, "MiB"), (1024.0, "KiB")),
    "flops": ((1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"), (1e3, "kFLOP")),
    "tokens_per_s": ((1.0, "tokens/s"),),
    "mj_per_token": ((1e3, "J/token"), (1.0, "mJ/token")),
}
_UNSCALED = {"bytes": "B", "flops": "FLOP", "tokens_per_s": "tokens/s", "mj_per_token": "mJ/token"}

_READABLE_RATIOS = (0.1, 1e3)
_LARGEST_WRITTEN_OUT = 1e15
_NARROW_INTERVAL = 0.05  # needs a third digit

_COMPARED = frozenset({Outcome.REGRESSED, Outcome.IMPROVED, Outcome.UNCHANGED, Outcome.INCONCLUSIVE})
_MOVED = {Outcome.REGRESSED, Outcome.IMPROVED}


def sentence(verdict: Verdict) -> str:
    """Return the verdict in one line.

    Example: ``TPOT ×1.525 [1.31, 1.78]: 6.42 ms > 4.21 ms baseline, limit ×1.02 (...)``. The most important part is
    first, since a terminal may truncate it.
    """
    if verdict.outcome not in _COMPARED:
        text = _not_compared(verdict)
    else:
        text = f"{_moved(verdict)}{_limit(verdict)}{_conclusion(verdict)}"
    return " ".join(text.split())


def short_sentence(verdict: Verdict) -> str:
    """Return the metric and its ratio for a list: ``TTFT ×1.898``; without a ratio, both values."""
    if _has_ratio(verdict):
        return _change(verdict)
    return f"{verdict.cell.metric.title} {_values(verdict)}{since(verdict.against)}"


def format_value(metric: Metric, value: float | str | None, *, digits: int = 3) -> str:
    """Format a value with a suitable unit: ``4.21 ms``, ``248 MiB``, ``475``, ``×1.52``, ``71 %``, ``n/a``."""
    if value is None or isinstance(value, str):
        return value or "n/a"
    if not math.isfinite(value):
        return str(value)
    if metric.unit == "ratio":
        return f"×{_significant(value, digits)}"
    if metric.unit == "share":
        return percent(value)
    if scale := scale_of(metric, value):
        size, unit = scale
        return f"{_significant(value / size, digits)} {unit}"
    return f"{_plain(value, digits)} {_UNSCALED.get(metric.unit, metric.unit)}".rstrip()


def scale_of(metric: Metric, value: float) -> tuple[float, str] | None:
    """Return the size, in the metric's unit, and the name of the unit that suits a value.

    Return ``None`` if the metric's own unit suits it.
    """
    scales = _SCALES.get(metric.unit, ())
    return next(((size, unit) for size, unit in scales if abs(value) >= 0.9995 * size), None)  # rounds to 1.00 of it


def _not_compared(verdict: Verdict) -> str:
    value = verdict.cell.value
    shown = (
        "" if value is None or verdict.outcome is Outcome.INVALID else f" {format_value(verdict.cell.metric, value)}"
    )
    words = [verdict.outcome.words, verdict.reason]
    return f"{verdict.cell.metric.title}{shown}{since(verdict.against)}: {', '.join(filter(None, words))}"


def _has_ratio(verdict: Verdict) -> bool:
    return verdict.ratio is not None and verdict.kind is not Kind.IDENTITY


def _moved(verdict: Verdict) -> str:
    if _has_ratio(verdict):
        return f"{_change(verdict, _bounds(verdict.interval))}: {_values(verdict)}"
    return short_sentence(verdict)


def _change(verdict: Verdict, bounds: str = "") -> str:
    return f"{verdict.cell.metric.title} ×{_ratio(number(verdict.ratio), 3)}{bounds}{since(verdict.against)}"


def _values(verdict: Verdict) -> str:
    metric, now, baseline = verdict.cell.metric, verdict.now, verdict.baseline
    if baseline is None:
        return format_value(metric, now)
    if verdict.kind is Kind.IDENTITY and verdict.outcome is Outcome.REGRESSED:
        return f"{now}, not {baseline} as in the baseline"
    if verdict.outcome not in _MOVED:
        return f"{format_value(metric, now)}, baseline {format_value(metric, baseline)}"
    left, right = told_apart(metric, number(now), number(baseline))
    return f"{left} {'>' if number(now) > number(baseline) else '<'} {right} baseline"


def told_apart(metric: Metric, now: float, baseline: float) -> tuple[str, str]:
    """Format both values with as many digits as needed to show that they differ."""
    for digits in range(3, 17):
        left, right = (format_value(metric, value, digits=digits) for value in (now, baseline))
        if left != right:
            break
    return left, right


def _limit(verdict: Verdict) -> str:
    if verdict.kind is Kind.IDENTITY or verdict.outcome is Outcome.INCONCLUSIVE:
        return ""
    if verdict.kind is Kind.EXACT:
        return f", limit {format_value(verdict.cell.metric, limit_value(verdict.cell))}"
    return "" if verdict.limit_ratio is None else f", limit ×{verdict.limit_ratio:.4g}"


def _bounds(interval: Interval | None) -> str:
    if interval is None:
        return ""
    digits = 3 if interval.high - interval.low < _NARROW_INTERVAL else 2
    return f" [{_ratio(interval.low, digits)}, {_ratio(interval.high, digits)}]"


def _conclusion(verdict: Verdict) -> str:
    if verdict.outcome is Outcome.INCONCLUSIVE:
        return f"; inconclusive: {verdict.reason}"
    stated = "" if verdict.outcome is Outcome.REGRESSED else f"; {verdict.outcome}"
    return f"{stated} ({_basis(verdict)})"


def _basis(verdict: Verdict) -> str:
    if verdict.kind is not Kind.TIMED:
        return f"{verdict.kind}, {plural(verdict.runs, 'run')}"
    words = ["varies between identical runs"] if verdict.cell.metric.kind is Kind.EXACT else []
    if verdict.outcome in _MOVED and verdict.p_value is not None:
        words.append(f"p={verdict.p_value:.1g}")
    return ", ".join([*words, _compared(verdict)]) + _candidates(verdict)


def _candidates(verdict: Verdict) -> str:
    """List all of this session's runs, if there were several: a mean hides whether they agree."""
    values = [format_value(verdict.cell.metric, value) for value in verdict.candidates]
    return f"; runs now: {', '.join(values)}" if values else ""


def _compared(verdict: Verdict) -> str:
    if verdict.blocks:
        return plural(verdict.blocks, "paired block")
    return evidence(verdict.runs, verdict.sessions)


def _ratio(value: float, digits: int) -> str:
    low, high = _READABLE_RATIOS
    return f"{value:.{digits}f}" if low <= value < high else f"{value:.{digits}g}"


def _significant(value: float, digits: int) -> str:
    """Format to ``digits`` significant digits, with trailing zeros, so that a column shows equal precision."""
    if abs(value) >= _LARGEST_WRITTEN_OUT:
        return f"{value:.{digits}g}"
    exponent = int(f"{value:.{digits - 1}e}".split("e")[1])
    return f"{value:.{max(0, digits - 1 - exponent)}f}"


def _plain(value: float, digits: int) -> str:
    """Format a count: as an integer if it is whole, else with three more digits than a measured figure."""
    whole = value == round(value) and abs(value) < _LARGEST_WRITTEN_OUT
    return f"{value:.0f}" if whole else f"{value:.{digits + 3}g}"
