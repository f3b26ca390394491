"""Export a run's figures as OpenMetrics text, to push to Prometheus.

The output has only gauges, without timestamps and with the unit in the name. So a Pushgateway and node_exporter's
textfile collector, which read the older text format, accept it as well.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

from pytest_llmperf.metrics import Metric
from pytest_llmperf.report.exports import ExportedPoint, points
from pytest_llmperf.text import printable
from pytest_llmperf.verdict.model import Outcome
from pytest_llmperf.verdict.verdict_file import VerdictFile

BASE_UNITS = {"ms": ("seconds", 1000), "tokens_per_s": ("tokens_per_second", 1)}
"""Prometheus' name of a unit and the divisor of a figure; other units are kept."""

WORKLOAD_LABELS = ("model", "quantization", "dtype", "attention", "execution", "batch_size", "input_tokens",
                   "output_tokens")  # fmt: skip


def openmetrics(verdicts: VerdictFile) -> str:
    """Return one gauge per metric, one sample per test and workload, and the number of gating cells by outcome.

    Format: https://prometheus.io/docs/specs/om/open_metrics_spec/.
    """
    families: defaultdict[Metric, list[ExportedPoint]] = defaultdict(list)
    for point in points(verdicts):
        families[point.metric].append(point)
    lines = [line for metric, found in families.items() for line in _family(metric, found, verdicts.device_key)]
    return "\n".join([*lines, *_outcomes(verdicts), "# EOF"]) + "\n"


def _family(metric: Metric, found: list[ExportedPoint], device: str) -> Iterator[str]:
    unit, divisor = BASE_UNITS.get(metric.unit, (metric.unit, 1))
    name = f"llmperf_{metric.name}_{unit}" if unit else f"llmperf_{metric.name}"
    yield f"# TYPE {name} gauge"
    if unit:
        yield f"# UNIT {name} {unit}"
    yield f"# HELP {name} {_escaped(metric.definition)}"
    for point in found:
        yield f"{name}{_labels(_of_point(point, device))} {point.value / divisor!r}"


def _of_point(point: ExportedPoint, device: str) -> dict[str, object]:
    labels = {"device": device, "test": point.test, "workload": point.cell.workload}
    return labels | (point.workload.model_dump(include=set(WORKLOAD_LABELS)) if point.workload else {})


def _outcomes(verdicts: VerdictFile) -> Iterator[str]:
    yield "# TYPE llmperf_cells gauge"
    yield "# HELP llmperf_cells Cells that gate, by outcome."
    for outcome in Outcome:
        labels = _labels({"device": verdicts.device_key, "outcome": outcome.value})
        yield f"llmperf_cells{labels} {verdicts.outcomes.get(outcome, 0)}"


def _labels(labels: Mapping[str, object]) -> str:
    return "{" + ",".join(f'{name}="{_escaped(printable(str(value)))}"' for name, value in labels.items()) + "}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
