"""Compare the environments of two runs: which differences make the runs not comparable."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from pytest_llmperf.metrics import COUNTED, Metric, Scalar
from pytest_llmperf.storage.schema import Workload


class Weight(StrEnum):
    """Effect of a difference in a field."""

    BLOCKS = "blocks"
    """The runs are not compared."""
    NOTED = "noted"
    """The difference is only shown."""


class State(StrEnum):
    """Result of comparing a field."""

    EQUAL = "equal"
    DIFFERS = "differs"
    UNKNOWN = "unknown"


FIELDS: Mapping[str, Weight] = {
    "method": Weight.BLOCKS,
    "device_name": Weight.BLOCKS,
    "device_type": Weight.BLOCKS,
    "device_memory_bytes": Weight.BLOCKS,
    "compute_capability": Weight.BLOCKS,
    "cpu_capability": Weight.BLOCKS,
    "mig": Weight.BLOCKS,
    "ecc": Weight.BLOCKS,
    "power_limit_w": Weight.BLOCKS,
    "driver": Weight.BLOCKS,
    "runtime": Weight.BLOCKS,
    "cuda_launch_blocking": Weight.BLOCKS,
    "cublas_workspace": Weight.BLOCKS,
    "cuda_allocator": Weight.BLOCKS,
    "fp32_precision": Weight.BLOCKS,
    "cpu_model": Weight.BLOCKS,
    "cpu_count": Weight.BLOCKS,
    "torch_threads": Weight.BLOCKS,
    "tracing": Weight.BLOCKS,
    "python": Weight.BLOCKS,
    "torch": Weight.BLOCKS,
    "transformers": Weight.BLOCKS,
    "bitsandbytes": Weight.BLOCKS,
    "torchao": Weight.BLOCKS,
    "vllm": Weight.BLOCKS,
    "accelerate": Weight.NOTED,
    "pytest_llmperf": Weight.NOTED,
    "device_uuid": Weight.NOTED,
    "host": Weight.NOTED,
    "kernel": Weight.NOTED,
    "platform": Weight.NOTED,
}
"""All fields of a run's environment, and the weight of a difference in each."""

BLOCKING = frozenset(name for name, weight in FIELDS.items() if weight is Weight.BLOCKS)
"""Fields that times and memory peaks depend on."""

ASSUMED: Mapping[str, Scalar] = {"tracing": "none"}
"""Values assumed for runs recorded before a field existed, so that a traced run is not compared with them."""


KIND = frozenset({"device_type", "compute_capability"})
"""Fields that tell one kind of device from another."""

DENSE = frozenset({"bf16", "fp16", "fp32"})
"""Quantizations whose operators torch dispatches alike on every CPU. Libraries choose theirs by instruction set."""

SPECULATIVE = frozenset({"lookup", "assisted"})
"""Executions whose work depends on which tokens are accepted, and so on how the processor rounds."""


@dataclass(frozen=True)
class Difference:
    """One field that is not known to be equal."""

    field: str
    weight: Weight
    state: State
    then: Scalar
    now: Scalar

    @property
    def is_of_builds(self) -> bool:
        """Whether it is only one of two builds of torch, such as ``2.13.0+cpu`` and ``2.13.0+cu130``."""
        return self.field == "torch" and _release(self.then) == _release(self.now)

    def __str__(self) -> str:
        return f"{self.field}: {self.then} -> {self.now}"


def compare_environments(then: Mapping[str, Scalar], now: Mapping[str, Scalar]) -> list[Difference]:
    """Return the fields in which two environments differ or may differ, blocking ones first."""
    found = [_compare_field(name, weight, _value(then, name), _value(now, name)) for name, weight in FIELDS.items()]
    return [difference for difference in found if difference.state is not State.EQUAL]


def known_to_differ(differences: Sequence[Difference]) -> tuple[str, ...]:
    """Return the fields that both environments have, and that differ, as text."""
    return tuple(str(found) for found in differences if found.state is State.DIFFERS)


def blocking(differences: list[Difference], fields: frozenset[str] = BLOCKING) -> list[Difference]:
    """Return the differences in ``fields`` that prevent a comparison; a field that only one side has does not.

    Two builds of torch run at different speeds and dispatch the same operators, so that they block only times.
    """
    relevant = [found for found in differences if found.field in fields and found.state is State.DIFFERS]
    return relevant if fields == BLOCKING else [found for found in relevant if not found.is_of_builds]


def depends_on(metric: Metric, workload: Workload) -> frozenset[str]:
    """Return the fields of the environment in which runs must be equal before their figures are compared."""
    if metric.depends_on is None or workload.execution in SPECULATIVE:
        return BLOCKING
    return metric.depends_on - {"cpu_capability"} if workload.quantization in DENSE else metric.depends_on


def is_portable(metric: Metric, workload: Workload) -> bool:
    """Whether a figure does not depend on the machine, so that runs of other machines decide it too."""
    return depends_on(metric, workload) != BLOCKING


def counted_key(environment: Mapping[str, Scalar]) -> tuple[Scalar, ...]:
    """The values that counted work depends on; equal keys have equal counts."""
    return values_of({**environment, "torch": _release(environment.get("torch"))}, COUNTED)


def values_of(environment: Mapping[str, Scalar], fields: frozenset[str]) -> tuple[Scalar, ...]:
    """The values of these fields, in the order of their names."""
    return tuple(_value(environment, name) for name in sorted(fields))


def _release(torch: Scalar) -> Scalar:
    """The version of torch without the build for CPUs or a version of CUDA; a build for ROCm is another library."""
    return re.sub(r"\+(cpu|cu\d+)$", "", torch) if isinstance(torch, str) else torch


def _value(environment: Mapping[str, Scalar], name: str) -> Scalar:
    return environment.get(name, ASSUMED.get(name))


def _compare_field(name: str, weight: Weight, then: Scalar, now: Scalar) -> Difference:
    if then == now:
        state = State.EQUAL
    elif then is None or now is None:
        state = State.UNKNOWN
    else:
        state = State.DIFFERS
    return Difference(field=name, weight=weight, state=state, then=then, now=now)
