"""What is stored: run records, workloads, cells and epochs, and the file that holds a window of them.

A number's field name carries its unit; a cell's unit is in its metric's key (``tpot_ms``). The JSON Schema in
``docs/baseline.schema.json`` is generated from these classes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pytest_llmperf.errors import UsageError
from pytest_llmperf.metrics import METRICS, Kind, Scalar, find_metric

SCHEMA_VERSION: Final = 1

Identifier = Annotated[str, Field(min_length=1, max_length=2048)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]


class _Stored(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class Workload(_Stored):
    """All that must be equal before two numbers may be compared. What ran, not what was asked for."""

    engine: str
    model: Identifier
    revision: str | None
    quantization: str
    dtype: str
    attention: str
    execution: str
    batch_size: Positive
    input_tokens: Count
    """Of each sequence; of the longest where lengths differ; 0 where no model was run."""
    output_tokens: Count
    """The same."""
    sampling: str
    prompt_sha256: str
    """Digest of the prompt's token ids: equal lengths of another text are another workload."""
    settings: dict[str, Scalar] = {}
    """What else was asked for, such as a compiler's mode or a scheduler's limits."""

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits that name this workload in a cell's key."""
        text = json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def differences(self, other: Workload) -> list[str]:
        """One ``field: other -> self`` for each field in which the two differ."""
        mine, theirs = self._flat(), other._flat()
        return [
            f"{name}: {theirs.get(name)} -> {mine.get(name)}"
            for name in mine | theirs
            if mine.get(name) != theirs.get(name)
        ]

    def _flat(self) -> dict[str, Scalar]:
        return self.model_dump(exclude={"settings"}) | self.settings


class Warmup(_Stored):
    """How warming up ended: requests made, and whether the last windows still showed a trend."""

    requests: Count
    steady: bool
    drift: float | None
    """Relative change of the median request from the last window but one to the last."""


class Run(_Stored):
    """One fresh process: the unit of replication."""

    run_id: Identifier
    session_id: Identifier
    """Runs close together on one boot of one machine share it, and share that session's luck."""
    time: Identifier
    """Start of the run, ISO 8601 in UTC."""
    commit: str | None
    dirty: bool | None
    environment: dict[str, Scalar]


class Observation(_Stored):
    """What stands beside the numbers of one test in one run."""

    run: Identifier
    test: Identifier
    workload: Identifier
    clock: str
    requests: Positive
    disturbed_requests: Count | None = None
    """Of these, how many had to wait for a processor that others held; ``None`` where the system does not tell."""
    tokens_produced: Count
    attention_requested: str | None
    warmup: Warmup
    conditions: dict[str, Scalar] = {}
    """What the machine was like before and after, such as clocks and load."""
    invalid: str = ""
    """Why nothing that was timed may be compared; empty if it may."""
    elapsed_s: float | None = None
    """Wall time from the test's start, its model loaded, until this was measured."""


class CellRun(_Stored):
    """One run's figure for one cell (one test x one metric).

    ``value`` is the median over requests, in the metric's unit; ``None`` where it could not be measured, for the
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
        """Unique in a file."""
        return (self.test, self.workload, self.metric, self.run)

    @property
    def is_timed(self) -> bool:
        """Whether the machine's mood is in the figure."""
        return self.metric in METRICS and METRICS[self.metric].kind is Kind.TIMED


class Epoch(_Stored):
    """An accepted step: of this cell only runs after ``time`` are compared."""

    test: Identifier
    metric: Identifier
    time: Identifier
    commit: str | None
    reason: Identifier


class Baseline(_Stored):
    """A window of run records of one device: the whole of one file."""

    schema_version: Literal[1] = 1
    device_key: Identifier
    runs: list[Run] = []
    workloads: dict[str, Workload] = {}
    observations: list[Observation] = []
    cells: list[CellRun] = []
    epochs: list[Epoch] = []

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        _refuse_duplicates("run", [run.run_id for run in self.runs])
        _refuse_duplicates("cell", [cell.key for cell in self.cells])
        _refuse_duplicates("observation", [(seen.run, seen.test, seen.workload) for seen in self.observations])
        for name, workload in self.workloads.items():
            if workload.hash != name:
                raise ValueError(f"workloads.{name}: the hash of its fields is {workload.hash}: edited by hand?")
        self._refuse_unknown_references()
        return self

    def invalid_cells(self) -> dict[tuple[str, str, str, str], str]:
        """Why cells must not be compared, by their keys: what was timed where the observation is invalid."""
        why = {(seen.test, seen.workload, seen.run): seen.invalid for seen in self.observations if seen.invalid}
        timed = (cell for cell in self.cells if cell.is_timed)
        found = {cell.key: why.get((cell.test, cell.workload, cell.run), "") for cell in timed}
        return {key: reason for key, reason in found.items() if reason}

    def _refuse_unknown_references(self) -> None:
        runs = {run.run_id for run in self.runs}
        rows: list[CellRun | Observation] = [*self.cells, *self.observations]
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
"""The operators that are not named, as one sum."""


class OperatorTime(_Stored):
    """What one operator or kernel took of a step by itself, without what it called."""

    name: Identifier
    place: Literal["host", "device"] = "host"
    self_ms: float
    calls: float


class PhaseProfile(_Stored):
    """Where the time of a phase went, per step: of decode per token, of prefill per request.

    ``wall_ms`` is the step by the host's clock. Each figure is the median of a few requests.
    """

    wall_ms: float
    operators: list[OperatorTime]


class StoredProfile(_Stored):
    """The profile of one workload of one test, by phase, and the run that it was taken with."""

    test: Identifier
    workload: Identifier
    run: Identifier
    phases: dict[str, PhaseProfile]

    @property
    def key(self) -> tuple[str, str]:
        """Unique in a file."""
        return (self.test, self.workload)


class ProfileFile(_Stored):
    """The latest profile of each workload of one device's baseline: the whole of one file."""

    schema_version: Literal[1] = 1
    device_key: Identifier
    runs: list[Run] = []
    profiles: list[StoredProfile] = []


class TestResult(_Stored):
    """What one test adds to its run: a line of the journal, and what a worker sends to its controller."""

    __test__ = False  # pytest would collect a class of this name

    workload: Workload
    observation: Observation
    cells: list[CellRun]
    samples: dict[str, list[float]] = {}
    """Per-request and per-token figures behind the cells, by metric key; kept out of baselines for their size."""
    profile: dict[str, PhaseProfile] = {}
    """Of one more request, by phase, where that was asked for."""

    def value(self, metric: str) -> int | float | str | None:
        """The figure of a metric, by name or key, in the metric's unit; ``None`` if it could not be measured.

        Raises:
            UsageError: there is no such metric, or it was not measured here.
        """
        key = find_metric(metric).key
        if cell := self.cell(key):
            return cell.value
        raise UsageError(f"{key} was not measured; expected one of {', '.join(cell.metric for cell in self.cells)}")

    def cell(self, key: str) -> CellRun | None:
        """The cell of a metric, by its key; ``None`` if it was not measured."""
        return next((cell for cell in self.cells if cell.metric == key), None)
