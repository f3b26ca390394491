"""Plot the history of cells with matplotlib: points, levels, change points and accepted changes."""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_llmperf.errors import BaselineError, MissingDependency, UsageError
from pytest_llmperf.metrics import Metric
from pytest_llmperf.text import printable
from pytest_llmperf.verdict.level_history import Series
from pytest_llmperf.verdict.sentence import format_value

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

ENDINGS = (".svg", ".png", ".html")
MOST_CELLS = 200
WIDTH_IN, HEIGHT_IN = 10.0, 2.2
DPI = 100


def check_plot(path: Path) -> None:
    """Check early that a file's format can be plotted.

    Raises:
        UsageError: the suffix is unknown.
    """
    if path.suffix not in ENDINGS:
        raise UsageError(f"cannot plot to {path}: expected a name ending in {', '.join(ENDINGS)}")


def write_plot(series: Sequence[Series], path: Path, *, title: str) -> None:
    """Draw one panel per cell.

    Raises:
        UsageError: there is nothing to draw, or too much; ``MissingDependency`` without matplotlib.
        BaselineError: the file cannot be written.
    """
    if not 0 < len(series) <= MOST_CELLS:
        raise UsageError(f"cannot plot {len(series)} cells: expected 1 to {MOST_CELLS}; name a TEST and a METRIC")
    figure = _figure(series)
    content = _image(figure, "png") if path.suffix == ".png" else _image(figure, "svg")
    if path.suffix == ".html":
        content = _page(content.decode(), title).encode()
    try:
        path.write_bytes(content)
    except OSError as error:
        raise BaselineError(f"cannot write {path}: {error.strerror or error}") from error


def _figure(series: Sequence[Series]) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependency("matplotlib", extra="history", purpose="plotting") from error
    figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN * len(series)), layout="constrained", dpi=DPI)
    panels = figure.subplots(len(series), squeeze=False)
    for one, axes in zip(series, panels.flat, strict=True):
        _draw(axes, one)
    return figure


def _draw(axes: Axes, series: Series) -> None:
    times = [_time(point.time) for point in series.points]
    axes.plot(times, [point.value for point in series.points], "o-", color="C0", markersize=3, linewidth=0.5)
    for points, level in series.levels:
        ends = [_time(points[0].time), _time(points[-1].time)]
        axes.plot(ends, [level, level], color="C1", linewidth=2)
    for change in series.changes:
        axes.axvline(_time(change.first.time), color="C3", linewidth=1, label="change")
    for epoch in series.epochs:
        axes.axvline(_time(epoch.time), color="C2", linewidth=1, linestyle="--", label="accepted")
    # A dollar sign in a test's name must not start a formula.
    axes.set_title(printable(f"{series.cell.test} - {series.cell.metric.title}"), fontsize=8, parse_math=False)
    axes.xaxis_date()
    axes.yaxis.set_major_formatter(_ticks(series.cell.metric))
    axes.tick_params(labelsize=7)
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    if handles:
        axes.legend(handles.values(), handles.keys(), fontsize=7, loc="best")


def _ticks(metric: Metric) -> FuncFormatter:
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda value, _place: format_value(metric, value))


def _image(figure: Figure, kind: str) -> bytes:
    from matplotlib import rc_context

    target = io.BytesIO()
    # Keep text as text, and make the bytes reproducible.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "llmperf"}):
        figure.savefig(target, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return target.getvalue()


def _page(svg: str, title: str) -> str:
    head = f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{html.escape(printable(title))}</title>'
    return f"{head}\n<body>\n{svg[svg.index('<svg') :]}</body></html>\n"


def _time(text: str) -> float:
    """Convert a record's time to matplotlib's unit, days."""
    from matplotlib.dates import date2num

    try:
        return float(date2num(datetime.fromisoformat(text)))  # type: ignore[no-untyped-call]
    except ValueError as error:
        raise BaselineError(f"{text!r} is not a time: expected ISO 8601. Restore it from version control") from error
