"""Schema of baseline files: runs, workloads, cells, observations and epochs as pydantic models.

A numeric field's name includes its unit; a cell's unit is part of its metric key (``tpot_ms``). The JSON Schema in
``docs/baseline.schema.json`` is generated from these classes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from pytest_llmperf.errors import UsageError
from pytest_llmperf.metrics import METRICS, Kind, Scalar, find_metric

SCHEMA_VERSION: Final = 1


def _known_metric(key: str) -> str:
    if key not in METRICS:
        raise ValueError(f"there is no metric {key!r:.80}")
    return key


MetricKey = Annotated[str, AfterValidator(_known_metric)]
"""Key of a metric that exists, also in a file that is read."""
Identifier = Annotated[str, Field(min_length=1, max_length=2048)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]


class _Stored(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class Workload(_Stored):
    """Everything that must be equal before two numbers are compared; records what ran, not what was requested."""

    engine: str
    model: Identifier
    revision: str | None
    quantization: str
    dtype: str
    attention: str
    execution: str
    batch_size: Positive
    input_tokens: Count
    """Tokens per sequence, of the longest if lengths differ; 0 if no model was run."""
    output_tokens: Count
    """The same for generated tokens."""
    sampling: str
    prompt_sha256: str
    """Digest of the prompt's token ids; another prompt of equal length is another workload."""
    settings: dict[str, Scalar] = {}
    """Other requested settings, such as a compiler's mode or a scheduler's limits."""

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits that identify this workload in a cell's key."""
        text = json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def differences(self, other: Workload) -> list[str]:
        """Return ``field: other -> self`` for each field in which the two differ."""
        mine, theirs = self._flat(), other._flat()
        return [
            f"{name}: {theirs.get(name)} -> {mine.get(name)}"
            for name in mine | theirs
            if mine.get(name) != theirs.get(name)
        ]

    def _flat(self) -> dict[str, Scalar]:
        return self.model_dump(exclude={"settings"}) | self.settings


class Warmup(_Stored):
    """Result of the warm-up: the number of requests, and whether the last windows still showed a trend."""

    requests: Count
    steady: bool
    drift: float | None
    """Relative change of the median request time from the second-to-last window to the last."""


class Run(_Stored):
    """One fresh process, the unit of replication."""

    run_id: Identifier
    session_id: Identifier
    """Shared by runs made close together on one boot of one machine; such runs are correlated."""
    time: Identifier
    """Start of the run, ISO 8601 in UTC."""
    commit: str | None
    dirty: bool | None
    environment: dict[str, Scalar]


class Observation(_Stored):
    """Circumstances of one test's measurement in one run."""

    run: Identifier
    test: Identifier
    workload: Identifier
    clock: str
    requests: Positive
    disturbed_requests: Count | None = None
    """Number of these that waited for a CPU held by other processes; ``None`` if the system does not report it."""
    tokens_produced: Count
    attention_requested: str | None
    warmup: Warmup
    conditions: dict[str, Scalar] = {}
    """State of the machine before and after, such as clocks and load."""
    invalid: str = ""
    """Reason that the timed figures must not be compared; empty if they are valid."""
    elapsed_s: float | None = None
    """Wall time from the test's start, with its model loaded, to the end of this measurement."""


class CellRun(_Stored):
    """One run's figure for one cell (one test x one metric).

    ``value`` is the median over requests, in the metric's unit, or ``None`` if it could not be measured, for the
    ``reason`` given. ``mean_log`` and ``mad_log`` are the mean and the median absolute deviation of the logarithms of
    the ``count`` requests behind a timed value.
    """

    test: Identifier
    workload: Identifier
    metric: Identifier
    run: Identifier
    value: int | float | str | None
    count: Count = 1
    mean_log: float | None = None
    mad_log: float | None = None
    reason: str = ""

    @model_validator(mode="after")
    def _none_has_a_reason(self) -> Self:
        if self.value is None and not self.reason:
            raise ValueError("a value of null needs a reason")
        return self

    @property
    def key(self) -> tuple[str, str, str, str]:
        """Key that is unique in a file."""
        return (self.test, self.workload, self.metric, self.run)

    @property
    def is_timed(self) -> bool:
        """Whether the metric is a measured time."""
        return self.metric in METRICS and METRICS[self.metric].kind is Kind.TIMED


class Epoch(_Stored):
    """An accepted change: only runs after ``time`` are compared for this test and metric."""

    test: Identifier
    metric: Identifier
    time: Identifier
    commit: str | None
    reason: Identifier


class StepCounts(_Stored):
    """Total counts of one step."""

    operators: float
    flops: float
    bytes: float
    """Bytes read and written."""
    allocations: float
    allocated_bytes: float


class PhaseWork(_Stored):
    """Counted work of a phase, per step: per request for prefill, per token for decode (the mean over its steps).

    ``first`` and ``last`` show whether it grows over the request.
    """

    steps: Positive
    operators: dict[str, float]
    """Calls by operator."""
    flops: dict[str, float]
    """By dtype."""
    bytes: dict[str, float]
    """Bytes read and written, by dtype."""
    allocations: float
    allocated_bytes: float
    first: StepCounts
    last: StepCounts
    without_formula: list[str] = []
    """Operators that compute and whose FLOPs are not known."""


class StoredWork(_Stored):
    """Counted work of one workload of one test, by phase, and the run that recorded it."""

    test: Identifier
    workload: Identifier
    run: Identifier
    phases: dict[str, PhaseWork]

    @property
    def key(self) -> tuple[str, str, str]:
        """Key that is unique in a file."""
        return (self.test, self.workload, self.run)


class Baseline(_Stored):
    """Window of run records of one device: the content of a baseline file."""

    schema_version: Literal[1] = 1
    device_key: Identifier
    runs: list[Run] = []
    workloads: dict[str, Workload] = {}
    observations: list[Observation] = []
    cells: list[CellRun] = []
    work: list[StoredWork] = []
    epochs: list[Epoch] = []

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        _refuse_duplicates("run", [run.run_id for run in self.runs])
        _refuse_duplicates("cell", [cell.key for cell in self.cells])
        _refuse_duplicates("work", [work.key for work in self.work])
        _refuse_duplicates("observation", [(seen.run, seen.test, seen.workload) for seen in self.observations])
        for name, workload in self.workloads.items():
            if workload.hash != name:
                raise ValueError(f"workloads.{name}: the hash of its fields is {workload.hash}: edited by hand?")
        self._refuse_unknown_references()
        return self

    def invalid_cells(self) -> dict[tuple[str, str, str, str], str]:
        """Return why cells must not be compared, by key: the timed cells of invalid observations."""
        why = {(seen.test, seen.workload, seen.run): seen.invalid for seen in self.observations if seen.invalid}
        timed = (cell for cell in self.cells if cell.is_timed)
        found = {cell.key: why.get((cell.test, cell.workload, cell.run), "") for cell in timed}
        return {key: reason for key, reason in found.items() if reason}

    def _refuse_unknown_references(self) -> None:
        runs = {run.run_id for run in self.runs}
        rows: list[CellRun | Observation | StoredWork] = [*self.cells, *self.observations, *self.work]
        for row in rows:
            if row.run not in runs:
                raise ValueError(f"{row.test}: run {row.run!r} is not among the file's runs")
            if row.workload not in self.workloads:
                raise ValueError(f"{row.test}: workload {row.workload!r} is not among the file's workloads")


def _refuse_duplicates(what: str, keys: Iterable[object]) -> None:
    seen: set[object] = set()
    for key in keys:
        if key in seen:
            raise ValueError(f"{what} {key!r} occurs twice")
        seen.add(key)


OTHERS = "(others)"
"""Name of the row that sums the operators without a row of their own."""


class OperatorTime(_Stored):
    """Self time and calls of one operator or kernel per step, without the operators that it calls."""

    name: Identifier
    place: Literal["host", "device"] = "host"
    self_ms: float
    calls: float


class PhaseProfile(_Stored):
    """Time of a phase by operator, per step: per token for decode, per request for prefill.

    ``wall_ms`` is the step's time by the host's clock. Each figure is the median of a few requests.
    """

    wall_ms: float
    operators: list[OperatorTime]


class StoredProfile(_Stored):
    """Profile of one workload of one test, by phase, and the run that recorded it."""

    test: Identifier
    workload: Identifier
    run: Identifier
    phases: dict[str, PhaseProfile]

    @property
    def key(self) -> tuple[str, str]:
        """Key that is unique in a file."""
        return (self.test, self.workload)


class ProfileFile(_Stored):
    """Latest profile of each workload of one device's baseline: the content of a profile file."""

    schema_version: Literal[1] = 1
    device_key: Identifier
    runs: list[Run] = []
    profiles: list[StoredProfile] = []


class TestResult(_Stored):
    """Result of one test in a run: a line of the journal, and the message from a worker to its controller."""

    __test__ = False  # pytest would collect a class of this name

    workload: Workload
    observation: Observation
    cells: list[CellRun]
    samples: dict[str, list[float]] = {}
    """Per-request and per-token figures of the cells, by metric key; too large to keep in baselines."""
    work: dict[str, PhaseWork] = {}
    """Counted work of one untimed request, by phase, where operators can be counted."""
    profile: dict[str, PhaseProfile] = {}
    """Profile of one additional request, by phase, if requested."""

    def value(self, metric: str) -> int | float | str | None:
        """Return the value of a metric, by name or key, in its unit; ``None`` if it could not be measured.

        Raises:
            UsageError: there is no such metric, or it was not measured here.
        """
        key = find_metric(metric).key
        if cell := self.cell(key):
            return cell.value
        raise UsageError(f"{key} was not measured; expected one of {', '.join(cell.metric for cell in self.cells)}")

    def cell(self, key: str) -> CellRun | None:
        """Return the cell of a metric by its key; ``None`` if it was not measured."""
        return next((cell for cell in self.cells if cell.metric == key), None)
