"""Compare workloads: charts over batch sizes, over prompt lengths, and of quantizations by latency and memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from pytest_llmperf.metrics import METRICS, Metric
from pytest_llmperf.report.charts import Axis, Chart, ChartTrace
from pytest_llmperf.report.workload_family import OVER_CONTEXT, Family, MeasuredWorkload
from pytest_llmperf.storage.schema import Workload

MEMORY = ("decode_peak_allocated_bytes", "weights_bytes")
"""Memory metrics of a quantization chart; the first that all workloads have is used."""


def charts(family: Family) -> Iterator[Chart]:
    """Yield the charts of a family."""
    metric = next(iter(family.members.values())).metric
    if len(family.batch_sizes) > 1:
        for key in dict.fromkeys((metric.key, "decode_tokens_per_s")):
            if family.have(key):
                yield _batch_scaling(family, METRICS[key])
    if len(family.lengths) > 1:
        for over in OVER_CONTEXT:
            if family.have(over.key):
                yield _over_context(family, over)
    space = next(filter(family.have, MEMORY), None)
    if len(family.quantizations) > 1 and space:
        yield _latency_and_memory(family, metric, METRICS[space])


def _batch_scaling(family: Family, metric: Metric) -> Chart:
    axis = _axis(family, metric)
    return Chart(
        title=f"Batch scaling: {metric.title}",
        x="batch size",
        y=axis.title,
        summary=f"{metric.title} of {', '.join(family.over_batches())} at batch sizes {_listed(family.batch_sizes)}",
        traces=_paths(family.over_batches(), lambda workload: workload.batch_size, axis, metric),
        ticks={str(batch): float(batch) for batch in family.batch_sizes},
        log_x=True,
        from_zero=True,
    )


def _over_context(family: Family, metric: Metric) -> Chart:
    axis = _axis(family, metric)
    costs = (f"{cost.series}: {cost}" for cost in family.context_costs(metric))
    return Chart(
        title=f"Context: {metric.title}",
        x="input tokens",
        y=axis.title,
        summary="; ".join(costs) or f"{metric.title} at {_listed(family.lengths)} input tokens",
        traces=_paths(family.over_lengths(), lambda workload: workload.input_tokens, axis, metric),
        from_zero=True,
    )


def _paths(
    series: Mapping[str, Sequence[MeasuredWorkload]], across: Callable[[Workload], int], axis: Axis, metric: Metric
) -> list[ChartTrace]:
    """Return a line for each series: the metric over a number of its workloads."""
    return [
        ChartTrace(
            name=name,
            form="path",
            role="other",
            x=[float(across(one.workload)) for one in members],
            y=axis.scaled(one.figures[metric.key] for one in members),
        )
        for name, members in series.items()
    ]


def _latency_and_memory(family: Family, metric: Metric, space: Metric) -> Chart:
    across, up = _axis(family, metric), _axis(family, space)
    return Chart(
        title=f"Quantizations: {metric.title} and {space.title}",
        x=across.title,
        y=up.title,
        summary=f"{', '.join(family.over_batches())}; points are batch sizes: {_listed(family.batch_sizes)}",
        traces=[
            ChartTrace(
                name=name,
                form="path",
                role="other",
                x=across.scaled(one.figures[metric.key] for one in members),
                y=up.scaled(one.figures[space.key] for one in members),
                labels=[str(one.workload.batch_size) for one in members],
            )
            for name, members in family.over_batches().items()
        ],
        from_zero=True,
    )


def _axis(family: Family, metric: Metric) -> Axis:
    return Axis.of(metric, (one.figures[metric.key] for one in family.members.values()))


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))
