"""One run from start to finish: takes measurements in, asks for verdicts, writes once.

Under xdist the worker measures and judges, and its controller collects and writes; without it one session does both.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from pytest_llmperf.compare import Comparison
from pytest_llmperf.errors import BaselineError, LlmperfError, MeasurementError, UsageError
from pytest_llmperf.measure.bench import Bench, default_model
from pytest_llmperf.measure.generation import Plan
from pytest_llmperf.measure.machine import device_key, environment, session_id
from pytest_llmperf.models.load import LoadedModel
from pytest_llmperf.models.quantization import QUANTIZATIONS, check_available
from pytest_llmperf.models.source import check_source
from pytest_llmperf.models.spec import ModelSpec
from pytest_llmperf.options import Options, TestSettings
from pytest_llmperf.records.journal import Journal, baseline_of
from pytest_llmperf.records.revision import head_commit, is_dirty
from pytest_llmperf.records.schema import Baseline, CellRun, Run, TestResult
from pytest_llmperf.records.store import baseline_path, check_writable, load_baseline, update_baseline
from pytest_llmperf.records.window import merge, only_new_cells
from pytest_llmperf.verdict.metrics import METRICS, Kind
from pytest_llmperf.verdict.model import Verdict
from pytest_llmperf.verdict.sentence import sentence

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_llmperf.verdict.metrics import Metric
    from pytest_llmperf.verdict.model import Limit

KEPT_JOURNALS = 20


class Entry(BaseModel):
    """What became of one test; travels from a worker to its controller as JSON."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    test: str
    device_key: str
    run: Run
    results: list[TestResult] = []
    verdicts: list[Verdict] = []
    injected: list[str] = []
    error: str = ""
    """Why the test has no verdict: the first line of what it raised."""

    @property
    def failing(self) -> list[Verdict]:
        """The verdicts that fail the test."""
        return [verdict for verdict in self.verdicts if verdict.fails]


@dataclass(frozen=True)
class PlannedTest:
    """A perf test as it was collected."""

    key: str
    settings: TestSettings
    spec: ModelSpec | None


@dataclass
class Update:
    """What became of the baseline: the file and its window, or why it was left alone."""

    path: Path
    baseline: Baseline | None = None
    refusal: str = ""


class Workplace:
    """The measuring and judging side: made once the tests are collected, where they run.

    Args:
        options: the run's settings.
        tests: the perf tests that will run.
        root: the user's project.

    Raises:
        UsageError: a device, model or quantization that is not to be had here.
        BaselineError: a baseline that cannot be trusted.
    """

    def __init__(self, options: Options, tests: Sequence[PlannedTest], *, root: Path) -> None:
        self.options = options
        self._bench = Bench(options.device)
        self._check_specs(tests)
        start = datetime.now(UTC)
        facts = environment(self._bench.device)
        self.device_key = device_key(facts)
        self.run = Run(
            run_id=f"{start:%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}",
            session_id=os.environ.get("LLMPERF_SESSION_ID") or session_id(f"{start:%Y-%m-%d}"),
            time=start.isoformat(timespec="seconds"),
            commit=head_commit(root),
            dirty=is_dirty(root),
            environment=facts,
        )
        self.comparison = Comparison(self._read_baseline(), facts, self._family_size(tests))

    @property
    def loads(self) -> int:
        """Models loaded so far."""
        return self._bench.models.loads

    def load(self, param: str | ModelSpec) -> LoadedModel:
        """The model that a test's parameter stands for, loaded if it is not the one at hand.

        Raises:
            ModelError: it cannot be loaded.
        """
        return self._bench.models.get(self._complete(ModelSpec.parse(param)))

    def measure(self, loaded: LoadedModel, plan: Plan, *, test: str) -> TestResult:
        """Measure, with what ``--llmperf-inject`` asks for put on top."""
        result = self._bench.measure(loaded, plan, test=test, run_id=self.run.run_id)
        return _inject(result, self.options)

    def entry(self, test: str, settings: TestSettings, results: list[TestResult], *, error: str = "") -> Entry:
        """What became of a test that has run."""
        return Entry(
            test=test,
            device_key=self.device_key,
            run=self.run,
            results=results,
            verdicts=[] if error or self.options.measure_only else self._judge(test, settings, results),
            injected=[str(injection) for injection in self.options.injections],
            error=error,
        )

    def release(self) -> None:
        """Let the model go."""
        self._bench.models.release()

    @property
    def device(self) -> str:
        """The device as torch names it."""
        return self._bench.device

    def _judge(self, test: str, settings: TestSettings, results: list[TestResult]) -> list[Verdict]:
        limit = self.options.limits(test, settings.layer())
        return [verdict for result in results for verdict in self.comparison.verdicts(result, limit)]

    def _complete(self, spec: ModelSpec) -> ModelSpec:
        return spec.with_defaults(
            model=self.options.model or default_model(self._bench.device), revision=self.options.revision
        )

    def _check_specs(self, tests: Sequence[PlannedTest]) -> None:
        for test in tests:
            if test.spec is not None:
                spec = self._complete(test.spec)
                check_available(QUANTIZATIONS[spec.quantization], self._bench.device.partition(":")[0])
                check_source(spec)

    def _family_size(self, tests: Sequence[PlannedTest]) -> int:
        """How many timed cells could fail this run."""
        timed = [metric for metric in METRICS.values() if metric.kind is Kind.TIMED]
        gating = 0
        for test in tests:
            limit: Callable[[Metric], Limit] = self.options.limits(test.key, test.settings.layer())
            gating += sum(limit(metric).gates for metric in timed)
        return max(1, gating)

    def _read_baseline(self) -> Baseline | None:
        path = baseline_path(self.options.baselines, self.device_key)
        if self.options.updates:
            check_writable(path)
        if self.options.measure_only or not path.exists():
            return None
        baseline = load_baseline(path)
        if baseline.device_key != self.device_key:
            raise BaselineError(
                f"{path}: device_key: expected {self.device_key!r}, found {baseline.device_key!r}. "
                "Rename the file, or record this device's own"
            )
        return baseline


@dataclass
class Session:
    """The collecting side: every entry, the journal, and the one write at the end."""

    options: Options
    root: Path
    entries: list[Entry] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    journal: Journal | None = None
    update: Update | None = None

    def collect(self, entry: Entry) -> None:
        """Take in what became of a test, and keep what it measured at once."""
        self.entries.append(entry)
        if not entry.injected:
            self.journal = self.journal or self._journal(entry)
            for result in entry.results:
                self.journal.append(result)
        if self.options.json_folder:
            _write_json(self.options.json_folder, entry)

    def finish(self, *, failed: bool, interrupted: bool) -> None:
        """Update the baseline if that was asked for and is allowed."""
        if not self.options.updates:
            return
        reason = self._refusal(failed=failed, interrupted=interrupted)
        if reason:
            self.update = Update(path=self.options.baselines, refusal=reason)
            return
        path = baseline_path(self.options.baselines, self.entries[0].device_key)
        try:
            self.update = Update(path=path, baseline=update_baseline(path, self._appended))
        except LlmperfError as error:
            self.update = Update(path=path, refusal=str(error))

    def _refusal(self, *, failed: bool, interrupted: bool) -> str:
        """Why this run must not become part of the baseline; empty if it may."""
        if interrupted:
            return f"the run was interrupted{self._kept()}"
        if failed:
            return f"a test failed{self._kept()}"
        if not any(entry.results for entry in self.entries):
            return "nothing was measured"
        invalid = sum(verdict.outcome.value == "invalid" for entry in self.entries for verdict in entry.verdicts)
        return f"{invalid} cells are invalid" if invalid else ""

    def _kept(self) -> str:
        return f"; what was measured is kept in {self.journal.path}" if self.journal else ""

    def _appended(self, baseline: Baseline | None) -> Baseline:
        first = self.entries[0]
        run = baseline_of(first.device_key, first.run, [result for entry in self.entries for result in entry.results])
        if baseline is None:
            return run
        return merge(baseline, only_new_cells(baseline, run) if self.options.update_new_only else run)

    def _journal(self, entry: Entry) -> Journal:
        folder = self.root / ".llmperf" / "runs"
        _prepare(folder)
        path = folder / f"{entry.run.run_id}.jsonl"
        return Journal(path, device_key=entry.device_key, run=entry.run)


def refuse_update_early(options: Options, *, environ: Mapping[str, str], workers: int) -> None:
    """Refuse what could only be refused after minutes of measuring otherwise.

    Raises:
        UsageError: more than one worker would measure on a device, or an update under CI was not forced.
    """
    if workers > 1:
        raise UsageError(
            f"--llmperf: {workers} workers would measure on one device at once; expected one: use -n0 or -n1"
        )
    # The same test for CI that pytest uses.
    if options.updates and not options.force_update and (environ.get("CI") or environ.get("BUILD_NUMBER")):
        raise UsageError(
            "--llmperf-update under CI: a gate must not move its own baseline; allow it with --llmperf-force-update"
        )


def failure_text(failing: Sequence[Verdict], injected: Sequence[str]) -> str:
    """One line for each verdict that fails a test."""
    mark = f" [injected {', '.join(injected)}]" if injected else ""
    return "\n".join(f"{sentence(verdict)}{mark}" for verdict in failing)


def _inject(result: TestResult, options: Options) -> TestResult:
    factors = {injection.metric.key: injection.factor for injection in options.injections}
    if not factors:
        return result
    return result.model_copy(
        update={"cells": [_multiplied(cell, factors.get(cell.metric, 1.0)) for cell in result.cells]}
    )


def _multiplied(cell: CellRun, factor: float) -> CellRun:
    if factor == 1.0 or not isinstance(cell.value, int | float):
        return cell
    return cell.model_copy(update={"value": cell.value * factor})


def _write_json(folder: Path, entry: Entry) -> None:
    """One file a measured workload, named after its parameters."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for result in entry.results:
            (folder / f"{_file_name(entry.test, result)}.json").write_text(
                entry.model_copy(update={"results": [result]}).model_dump_json(indent=1), encoding="utf-8"
            )
    except OSError as error:
        raise MeasurementError(f"--llmperf-json: cannot write to {folder}: {error.strerror or error}") from error


def _file_name(test: str, result: TestResult) -> str:
    from pytest_llmperf.measure.machine import slug

    workload = result.workload
    function = test.rpartition("::")[2].partition("[")[0]
    lengths = f"b{workload.batch_size}-{workload.input_tokens}in-{workload.output_tokens}out"
    return "-".join(
        (slug(function), slug(workload.model), workload.quantization, lengths, workload.execution, workload.hash)
    )


def _prepare(folder: Path) -> None:
    """A folder that git ignores, with room for one more journal."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder.parent / ".gitignore").write_text("*\n", encoding="utf-8")
    for old in sorted(folder.glob("*.jsonl"))[: -(KEPT_JOURNALS - 1)]:
        old.unlink(missing_ok=True)
