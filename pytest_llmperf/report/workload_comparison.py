"""Compare workloads: charts over batch sizes, and of quantizations by latency and memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from pytest_llmperf.metrics import METRICS, Metric, primary_metric
from pytest_llmperf.report.charts import Axis, Chart, ChartTrace
from pytest_llmperf.storage.schema import Workload

FREE = {"batch_size", "quantization", "dtype", "prompt_sha256"}
"""Fields in which the workloads of a family may differ."""

MEMORY = ("decode_peak_allocated_bytes", "weights_bytes")
"""Memory metrics of a quantization chart; the first that all workloads have is used."""


@dataclass(frozen=True)
class MeasuredWorkload:
    """One workload of one test, with its figures by metric key."""

    test: str
    workload: Workload
    figures: Mapping[str, float]

    @property
    def metric(self) -> Metric:
        """The primary metric."""
        return primary_metric(self.figures)


@dataclass(frozen=True)
class Family:
    """Workloads of one test function that differ only in batch size and quantization."""

    name: str
    members: Mapping[tuple[str, int], MeasuredWorkload]
    """Workloads by quantization and batch size."""

    @property
    def batch_sizes(self) -> list[int]:
        """Measured batch sizes, in increasing order."""
        return sorted({batch for _, batch in self.members})

    @property
    def quantizations(self) -> list[str]:
        """Measured quantizations, in the order of the tests."""
        return list(dict.fromkeys(quantization for quantization, _ in self.members))

    def of(self, quantization: str) -> list[MeasuredWorkload]:
        """Return the workloads of one quantization by batch size."""
        return [self.members[quantization, b] for b in self.batch_sizes if (quantization, b) in self.members]


def families(measured: Iterable[MeasuredWorkload]) -> list[Family]:
    """Return the families with at least two workloads."""
    found: defaultdict[tuple[str, str, str], dict[tuple[str, int], MeasuredWorkload]] = defaultdict(dict)
    for one in measured:
        if one.metric.key in one.figures:
            function = one.test.partition("[")[0]
            fixed = one.workload.model_dump_json(exclude=FREE)
            found[function, one.metric.key, fixed][one.workload.quantization, one.workload.batch_size] = one
    return [Family(_name(key[0], members), members) for key, members in found.items() if len(members) > 1]


def charts(family: Family) -> Iterator[Chart]:
    """Yield the charts of a family."""
    metric = next(iter(family.members.values())).metric
    if len(family.batch_sizes) > 1:
        for key in dict.fromkeys((metric.key, "decode_tokens_per_s")):
            if all(key in one.figures for one in family.members.values()):
                yield _batch_scaling(family, METRICS[key])
    space = next((key for key in MEMORY if all(key in one.figures for one in family.members.values())), None)
    if len(family.quantizations) > 1 and space:
        yield _latency_and_memory(family, metric, METRICS[space])


def _batch_scaling(family: Family, metric: Metric) -> Chart:
    axis = Axis.of(metric, (one.figures[metric.key] for one in family.members.values()))
    return Chart(
        title=f"Batch scaling: {metric.title}",
        x="batch size",
        y=axis.title,
        summary=f"{metric.title} of {', '.join(family.quantizations)} at batch sizes {_listed(family.batch_sizes)}",
        traces=[
            ChartTrace(
                name=quantization,
                form="path",
                role="other",
                x=[float(one.workload.batch_size) for one in family.of(quantization)],
                y=axis.scaled(one.figures[metric.key] for one in family.of(quantization)),
            )
            for quantization in family.quantizations
        ],
        ticks={str(batch): float(batch) for batch in family.batch_sizes},
        log_x=True,
        from_zero=True,
    )


def _latency_and_memory(family: Family, metric: Metric, space: Metric) -> Chart:
    members = family.members.values()
    across = Axis.of(metric, (one.figures[metric.key] for one in members))
    up = Axis.of(space, (one.figures[space.key] for one in members))
    return Chart(
        title=f"Quantizations: {metric.title} and {space.title}",
        x=across.title,
        y=up.title,
        summary=f"{', '.join(family.quantizations)}; points are batch sizes: {_listed(family.batch_sizes)}",
        traces=[
            ChartTrace(
                name=quantization,
                form="path",
                role="other",
                x=across.scaled(one.figures[metric.key] for one in family.of(quantization)),
                y=up.scaled(one.figures[space.key] for one in family.of(quantization)),
                labels=[str(one.workload.batch_size) for one in family.of(quantization)],
            )
            for quantization in family.quantizations
        ],
        from_zero=True,
    )


def _name(function: str, members: Mapping[tuple[str, int], MeasuredWorkload]) -> str:
    workload = next(iter(members.values())).workload
    return f"{function.rpartition('::')[2]}: {workload.model}, {workload.execution}, {workload.attention}"


def _listed(sizes: Iterable[int]) -> str:
    return ", ".join(map(str, sizes))
