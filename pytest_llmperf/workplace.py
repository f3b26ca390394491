"""Where perf tests run: one device, one model at a time, and the baseline that figures are judged against."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pytest_llmperf.anchor import Anchor, baseline_at, with_steps_of
from pytest_llmperf.compare import Comparison
from pytest_llmperf.errors import BaselineError
from pytest_llmperf.measure.bench import Bench, default_model
from pytest_llmperf.measure.generation import Plan
from pytest_llmperf.measure.machine import device_key, environment, session_id
from pytest_llmperf.models.load import LoadedModel
from pytest_llmperf.models.quantization import QUANTIZATIONS, check_available
from pytest_llmperf.models.source import check_source
from pytest_llmperf.models.spec import ModelSpec
from pytest_llmperf.options import Options, TestSettings
from pytest_llmperf.outcome import Entry
from pytest_llmperf.records.revision import head_commit, is_dirty
from pytest_llmperf.records.schema import Baseline, CellRun, Run, TestResult
from pytest_llmperf.records.store import baseline_path, check_writable, load_baseline
from pytest_llmperf.verdict.metrics import METRICS, Kind
from pytest_llmperf.verdict.model import Verdict


@dataclass(frozen=True)
class PlannedTest:
    """A perf test as it was collected."""

    key: str
    settings: TestSettings
    spec: ModelSpec | None


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
        family_size = self._family_size(tests)
        self.comparison = Comparison(self._read_baseline(), facts, family_size)
        self._anchor = self._read_anchor(root, family_size)

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
        found = [verdict for result in results for verdict in self.comparison.verdicts(result, limit)]
        if self._anchor:
            found += [verdict for result in results for verdict in self._anchor.verdicts(result, limit)]
        return found

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
        limits = [self.options.limits(test.key, test.settings.layer()) for test in tests]
        comparisons = 2 if self.options.anchor else 1
        return max(1, comparisons * sum(limit(metric).gates for limit in limits for metric in timed))

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

    def _read_anchor(self, root: Path, family_size: int) -> Anchor | None:
        if self.options.anchor is None or self.options.measure_only:
            return None
        path = baseline_path(self.options.baselines, self.device_key)
        pinned = with_steps_of(self.comparison.baseline, baseline_at(root, self.options.anchor, path))
        return Anchor(self.options.anchor, Comparison(pinned, self.run.environment, family_size))


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
