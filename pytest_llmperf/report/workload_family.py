"""Families: workloads of one test function that differ only in quantization, batch size and prompt length."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pytest_llmperf.metrics import METRICS, Metric, primary_metric
from pytest_llmperf.stats.linear_fit import Line, fit_line
from pytest_llmperf.storage.schema import Workload
from pytest_llmperf.verdict.sentence import format_value

FREE = {"batch_size", "quantization", "dtype", "input_tokens", "prompt_sha256"}
"""Fields in which the workloads of a family may differ."""

OVER_CONTEXT = tuple(METRICS[key] for key in ("tpot_ms", "ttft_ms"))
"""Metrics that grow with the prompt length."""

PER_TOKENS = 1000
"""Costs of context are given for so many tokens: the cost of one is too small to read."""


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
class ContextCost:
    """A metric of one quantization and batch size as a line over the prompt length, in ms and ms per token."""

    metric: Metric
    series: str
    lengths: Sequence[int]
    """Measured prompt lengths, in increasing order."""
    line: Line

    def __str__(self) -> str:
        grows = format_value(self.metric, abs(self.line.slope) * PER_TOKENS)
        sign = "-" if self.line.slope < 0 else "+"
        fit = "" if self.line.r_squared is None else f" (R² {self.line.r_squared:.3f})"
        base = format_value(self.metric, self.line.intercept)
        return f"{self.metric.title} {base} {sign} {grows} per {PER_TOKENS} input tokens{fit}"


@dataclass(frozen=True)
class Family:
    """Workloads of one test function that differ only in quantization, batch size and prompt length."""

    name: str
    members: Mapping[tuple[str, int, int], MeasuredWorkload]
    """Workloads by quantization, batch size and input tokens."""

    @property
    def quantizations(self) -> list[str]:
        """Measured quantizations, in the order of the tests."""
        return list(dict.fromkeys(quantization for quantization, _, _ in self.members))

    @property
    def batch_sizes(self) -> list[int]:
        """Measured batch sizes, in increasing order."""
        return sorted({batch for _, batch, _ in self.members})

    @property
    def lengths(self) -> list[int]:
        """Measured prompt lengths in tokens, in increasing order."""
        return sorted({length for _, _, length in self.members})

    def have(self, key: str) -> bool:
        """Return whether every workload has a figure of this metric."""
        return all(key in one.figures for one in self.members.values())

    def over_batches(self) -> dict[str, list[MeasuredWorkload]]:
        """Return the workloads of each quantization and prompt length by batch size; names omit an only length."""
        several = len(self.lengths) > 1
        return {
            f"{quantization}, {length} in" if several else quantization: found
            for quantization in self.quantizations
            for length in self.lengths
            if (found := self._found((quantization, batch, length) for batch in self.batch_sizes))
        }

    def over_lengths(self) -> dict[str, list[MeasuredWorkload]]:
        """Return the workloads of each quantization and batch size by prompt length."""
        return {
            f"{quantization}, batch {batch}": found
            for quantization in self.quantizations
            for batch in self.batch_sizes
            if (found := self._found((quantization, batch, length) for length in self.lengths))
        }

    def context_costs(self, metric: Metric) -> Iterator[ContextCost]:
        """Yield the line over the prompt length of each series with at least two lengths."""
        for series, members in self.over_lengths().items():
            lengths = [one.workload.input_tokens for one in members if metric.key in one.figures]
            values = [one.figures[metric.key] for one in members if metric.key in one.figures]
            if len(lengths) > 1:
                yield ContextCost(metric, series, lengths, fit_line(lengths, values))

    def _found(self, keys: Iterable[tuple[str, int, int]]) -> list[MeasuredWorkload]:
        return [self.members[key] for key in keys if key in self.members]


def families(measured: Iterable[MeasuredWorkload]) -> list[Family]:
    """Return the families with at least two workloads."""
    found: defaultdict[tuple[str, str, str], dict[tuple[str, int, int], MeasuredWorkload]] = defaultdict(dict)
    for one in measured:
        if one.metric.key in one.figures:
            workload, function = one.workload, one.test.partition("[")[0]
            place = (workload.quantization, workload.batch_size, workload.input_tokens)
            found[function, one.metric.key, workload.model_dump_json(exclude=FREE)][place] = one
    return [Family(_name(key[0], members), members) for key, members in found.items() if len(members) > 1]


def _name(function: str, members: Mapping[tuple[str, int, int], MeasuredWorkload]) -> str:
    workload = next(iter(members.values())).workload
    return f"{function.rpartition('::')[2]}: {workload.model}, {workload.execution}, {workload.attention}"
