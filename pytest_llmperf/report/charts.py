"""Charts of the HTML report, as data scaled to the axis; ``page/page.js`` passes them to plotly."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from statistics import median
from textwrap import shorten
from typing import Literal

from pytest_llmperf.metrics import METRICS, Metric
from pytest_llmperf.stats.summary import percentile
from pytest_llmperf.storage.schema import TestResult
from pytest_llmperf.text import plural, short_hash
from pytest_llmperf.verdict.level_history import Series
from pytest_llmperf.verdict.sentence import format_value, scale_of

MOST_POINTS = 256
"""Maximum points along an axis; more are not distinguishable and enlarge the file, so neighbours are combined."""

DIGITS = 5
LONGEST_LABEL = 40

PHASES = ("load", "prefill", "decode", "serving")
HELD = {"weights": "weights_bytes", "KV cache": "kv_cache_bytes"}

Role = Literal["now", "baseline", "level", "other"]
"""Meaning of a trace, which decides its colour; ``other`` traces get colours by their order."""


@dataclass(frozen=True, kw_only=True)
class ChartTrace:
    """One series of figures; ``labels`` are shown on hover."""

    name: str
    form: Literal["line", "points", "path", "bars", "box"]
    role: Role
    x: Sequence[float | str]
    y: Sequence[float]
    labels: Sequence[str] = ()
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    """Upper bound of a band around a line; ``low`` is the lower bound."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A vertical line."""

    x: float
    label: str
    accepted: bool


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One chart; ``summary`` describes it in words."""

    title: str
    x: str
    y: str
    summary: str
    traces: Sequence[ChartTrace]
    marks: Sequence[Mark] = ()
    ticks: Mapping[str, float] | None = None
    """Labels of the x axis with their positions, if they are not spaced evenly."""
    categories: Sequence[str] = ()
    """Order of the names on the x axis."""
    log_x: bool = False
    from_zero: bool = False
    wide: bool = False
    """Whether the chart spans two columns of the page."""


@dataclass(frozen=True)
class Axis:
    """A metric's axis, with a unit that suits its largest figure."""

    metric: Metric
    size: float
    unit: str

    @classmethod
    def of(cls, metric: Metric, values: Iterable[float]) -> Axis:
        """Return the axis for figures in the metric's unit."""
        size, unit = scale_of(metric, max(map(abs, values), default=0.0)) or (1.0, metric.unit)
        return cls(metric, size, unit)

    @property
    def title(self) -> str:
        """The metric and the unit."""
        return f"{self.metric.title} ({self.unit})" if self.unit else self.metric.title

    def scaled(self, values: Iterable[float]) -> list[float]:
        """Convert figures to the axis's unit."""
        return [rounded(value / self.size) for value in values]


def rounded(value: float) -> float:
    """Round to as many digits as a chart can show."""
    return float(f"{value:.{DIGITS}g}")


def figure(value: object) -> float | None:
    """Return a value as a float; ``None`` for text, missing and non-finite values."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def figures(values: Mapping[str, object]) -> dict[str, float]:
    """Return the values that can be drawn."""
    return {name: value for name, part in values.items() if (value := figure(part)) is not None}


def per_token(result: TestResult, baseline_tpot_ms: float | None) -> Chart | None:
    """Return a chart of inter-token latency by position; ``None`` if requests differ in length."""
    gaps, positions = result.samples.get("itl_ms", []), result.workload.output_tokens - 1
    if positions < 2 or len(gaps) != positions * result.observation.requests:  # noqa: PLR2004  # a line needs two
        return None
    axis = Axis.of(METRICS["itl_p50_ms"], gaps)
    stride = math.ceil(positions / MOST_POINTS)
    starts = range(0, positions, stride)
    columns = [
        [*chain.from_iterable(gaps[at::positions] for at in range(s, min(s + stride, positions)))] for s in starts
    ]
    x = [start + 2.0 for start in starts]
    traces = [_band("this run, median and 10th to 90th percentile", x, columns, axis)]
    if baseline_tpot_ms is not None:
        level = axis.scaled([baseline_tpot_ms] * 2)
        traces.append(ChartTrace(name="baseline TPOT", form="line", role="baseline", x=[x[0], x[-1]], y=level))
    return Chart(
        title="Latency by token position",
        x="token",
        y=f"gap before it ({axis.unit})",
        summary=f"median gap {_range(axis, map(median, columns))} over tokens 2 to {positions + 1}, "
        f"{plural(result.observation.requests, 'request')}",
        traces=traces,
        from_zero=True,
        wide=True,
    )


def distribution(
    metric: Metric, samples: Sequence[float], window: Sequence[float], runs: Sequence[float]
) -> Chart | None:
    """Return a chart of this run's requests, the baseline's runs and this session's runs."""
    groups: dict[str, tuple[Role, Sequence[float]]] = {
        f"baseline: {plural(len(window), 'run')}": ("baseline", window),
        f"this session: {plural(len(runs), 'run')}": ("other", runs),
        f"this run: {plural(len(samples), 'request')}": ("now", samples),
    }
    shown = {name: (role, values) for name, (role, values) in groups.items() if values}
    if sum(len(values) for _, values in shown.values()) < 2:  # noqa: PLR2004  # one figure has no distribution
        return None
    axis = Axis.of(metric, chain.from_iterable(values for _, values in shown.values()))
    return Chart(
        title=f"Distribution: {metric.title}",
        x="",
        y=axis.title,
        summary="; ".join(f"{name}, {_range(axis, values)}" for name, (_, values) in shown.items()),
        traces=[
            ChartTrace(name=name, form="box", role=role, x=[], y=axis.scaled(thinned(values)))
            for name, (role, values) in shown.items()
        ],
    )


def history(series: Series, now: float | None) -> Chart:
    """Return a chart of a cell over the baseline's sessions: levels, change points, and this run at the end.

    Raises:
        MissingDependency: ruptures is not installed.
    """
    points = series.points
    axis = Axis.of(series.cell.metric, [*(point.value for point in points), now or 0.0])
    traces = [_points(series, axis), *_levels(series, axis)]
    if now is not None:
        traces.append(
            ChartTrace(name="this run", form="points", role="now", x=[float(len(points))], y=axis.scaled([now]))
        )
    return Chart(
        title=f"History: {series.cell.metric.title}",
        x="session and commit, oldest first",
        y=axis.title,
        summary=f"{len(points)} points, {_range(axis, (point.value for point in points))}; "
        + "; ".join(
            [f"changes of level: {len(series.changes)}", *(f"accepted: {one.reason}" for one in series.epochs)]
        ),
        traces=traces,
        marks=_marks(series),
        ticks=_dates(series),
        wide=True,
    )


def memory(now: Mapping[str, float], baseline: Mapping[str, float]) -> Chart | None:
    """Return a chart of bytes by phase: weights, KV cache and peaks."""
    groups = (
        Bars("baseline", "baseline", baseline, "allocated"),
        Bars("allocated", "now", now, "allocated"),
        Bars("reserved", "other", now, "reserved"),
        Bars("RSS", "other", now, "rss"),
    )
    shown = [bars for bars in groups if bars.values]
    if not any(bars.role != "baseline" for bars in shown):
        return None
    axis = Axis.of(METRICS["weights_bytes"], chain.from_iterable(bars.values.values() for bars in shown))
    return Chart(
        title="Memory by phase",
        x="",
        y=axis.unit,
        summary="; ".join(f"{bars.name}: {bars.words}" for bars in shown if bars.role != "baseline"),
        traces=[
            ChartTrace(
                name=bars.name, form="bars", role=bars.role, x=[*bars.values], y=axis.scaled(bars.values.values())
            )
            for bars in shown
        ],
        categories=[*HELD, *(f"{phase} peak" for phase in PHASES)],
        from_zero=True,
    )


@dataclass(frozen=True)
class Bars:
    """One kind of memory by phase."""

    name: str
    role: Role
    figures: Mapping[str, float]
    kind: str

    @property
    def values(self) -> dict[str, float]:
        """Known values in bytes; weights and KV cache are shown with allocated memory."""
        held = HELD if self.kind == "allocated" else {}
        names = held | {f"{phase} peak": f"{phase}_peak_{self.kind}_bytes" for phase in PHASES}
        return {name: self.figures[key] for name, key in names.items() if key in self.figures}

    @property
    def words(self) -> str:
        """Each phase with its formatted value."""
        return ", ".join(
            f"{name} {format_value(METRICS['weights_bytes'], value)}" for name, value in self.values.items()
        )


def thinned(values: Sequence[float]) -> list[float]:
    """Return at most `MOST_POINTS` values with the same distribution."""
    if len(values) <= MOST_POINTS:
        return [*values]
    ordered = sorted(values)
    return [ordered[round(at * (len(ordered) - 1) / (MOST_POINTS - 1))] for at in range(MOST_POINTS)]


def _band(name: str, x: Sequence[float], columns: Sequence[Sequence[float]], axis: Axis) -> ChartTrace:
    low, middle, high = (axis.scaled(percentile(column, q) for column in columns) for q in (10, 50, 90))
    return ChartTrace(name=name, form="line", role="now", x=x, y=middle, low=low, high=high)


def _range(axis: Axis, values: Iterable[float]) -> str:
    found = [*values]
    low, high = (format_value(axis.metric, value) for value in (min(found), max(found)))
    return low if low == high else f"{low} to {high}"


def _points(series: Series, axis: Axis) -> ChartTrace:
    return ChartTrace(
        name="baseline",
        form="points",
        role="baseline",
        x=[float(at) for at in range(len(series.points))],
        y=axis.scaled(point.value for point in series.points),
        labels=[f"{one.time} {short_hash(one.commit or '')} runs: {one.runs}" for one in series.points],
    )


def _levels(series: Series, axis: Axis) -> Iterator[ChartTrace]:
    for start, (stretch, level) in zip(_starts(series), series.levels, strict=True):
        ends = [start - 0.4, start + len(stretch) - 0.6]
        yield ChartTrace(name="level", form="line", role="level", x=ends, y=axis.scaled([level] * 2))


def _starts(series: Series) -> list[int]:
    """Return the index of the point at which each level begins."""
    return [0, *accumulate(len(stretch) for stretch, _ in series.levels[:-1])]


def _marks(series: Series) -> list[Mark]:
    """Return level changes and accepted changes; the latter are drawn before the first later point."""
    labels: defaultdict[float, list[str]] = defaultdict(list)
    for start, change in zip(_starts(series)[1:], series.changes, strict=True):
        labels[start - 0.5].append(f"{100 * (change.after / change.before - 1):+.1f} %")
    accepted = {sum(point.time <= epoch.time for point in series.points) - 0.5: epoch for epoch in series.epochs}
    for x, epoch in accepted.items():
        labels[x].append(f"accepted: {shorten(epoch.reason, LONGEST_LABEL, placeholder='...')}")
    return [Mark(x=x, label=", ".join(words), accepted=x in accepted) for x, words in labels.items()]


def _dates(series: Series) -> dict[str, float]:
    """Return a few dates, each at the position of its first point."""
    days: dict[str, float] = {}
    for at, point in enumerate(series.points):
        days.setdefault(point.time[:10], float(at))
    every = math.ceil(len(days) / _MOST_DATES)
    return dict([*days.items()][::every])


_MOST_DATES = 6
