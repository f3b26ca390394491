"""Build figures from samples, and cells from figures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict

from pytest_llmperf.hardware.memory import PeakMemory
from pytest_llmperf.metrics import METRICS, Figure
from pytest_llmperf.stats.summary import TAIL_REQUESTS, percentile, summarize
from pytest_llmperf.storage.schema import CellRun, Workload


def timed(metric: str, samples: Sequence[float], *, lacking: str) -> Figure:
    """Median of samples, one per request, in the metric's unit; ``lacking`` is the reason if there are none."""
    if not samples:
        return Figure(metric, None, lacking)
    value, mean_log, mad_log = summarize(samples)
    return Figure(metric, value, count=len(samples), mean_log=mean_log, mad_log=mad_log)


PERCENTILES = (10, 25, 50, 75, 90)


def gap_percentiles(gaps_ms: Sequence[float], *, requests: int, lacking: str) -> Iterator[Figure]:
    """Percentiles of the gaps between consecutive tokens; tail percentiles only with enough requests."""
    for q in PERCENTILES:
        value = percentile(gaps_ms, q) if gaps_ms else None
        yield Figure(f"itl_p{q}_ms", value, "" if gaps_ms else lacking, len(gaps_ms) or 1)
    for q, needed in TAIL_REQUESTS.items():
        if gaps_ms and requests >= needed:
            yield Figure(f"itl_p{q}_ms", percentile(gaps_ms, q), count=len(gaps_ms))


def memory_figures(phase: str, peak: PeakMemory) -> Iterator[Figure]:
    """The memory peaks of one phase."""
    for name, value in (
        ("allocated", peak.allocated_bytes),
        ("reserved", peak.reserved_bytes),
        ("rss", peak.rss_bytes),
    ):
        yield Figure(f"{phase}_peak_{name}_bytes", value, "" if value is not None else peak.reason)


def cells_of(figures: Iterable[Figure], *, test: str, run_id: str, workload: Workload) -> list[CellRun]:
    """The cells of one workload, in one test of one run.

    Raises:
        KeyError: a figure's metric is not defined.
    """
    key = {"test": test, "workload": workload.hash, "run": run_id}
    rows = [key | asdict(figure) | {"metric": METRICS[figure.metric].key} for figure in figures]
    return [CellRun.model_validate(row) for row in rows]
