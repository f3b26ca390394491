"""Workplace: measures perf tests on one device, one model at a time, and judges them against the baseline."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pytest_llmperf.engines.engine import Engine
from pytest_llmperf.engines.engine_registry import ENGINES, EngineOptions
from pytest_llmperf.engines.transformers import TransformersEngine
from pytest_llmperf.errors import BaselineError, MeasurementError, Unavailable, UsageError
from pytest_llmperf.hardware.dead_device import why_dead
from pytest_llmperf.hardware.device import is_fake
from pytest_llmperf.hardware.environment import counted_device_key, device_key, session_id
from pytest_llmperf.measure.bench import Bench
from pytest_llmperf.measure.fake_bench import FakeBench
from pytest_llmperf.measure.generation import Plan
from pytest_llmperf.measure.kernel import KernelTimer
from pytest_llmperf.measure.kernel_timing import Timing
from pytest_llmperf.measure.progress import TEST_BODY
from pytest_llmperf.measure.serving_plan import ServingPlan
from pytest_llmperf.measure.timeout import contained
from pytest_llmperf.metrics import METRICS, Limit
from pytest_llmperf.models.load import LoadedModel
from pytest_llmperf.models.own_model import adopt, check_generates
from pytest_llmperf.models.source import default_model
from pytest_llmperf.models.spec import ModelSpec
from pytest_llmperf.runner.config import Options, TestSettings
from pytest_llmperf.stats.holm import holm_family_sizes
from pytest_llmperf.storage.baseline_file import baseline_path, check_writable, load_baseline
from pytest_llmperf.storage.baseline_folder import parse_baselines, read_baselines, texts_at
from pytest_llmperf.storage.comparability import compare_environments, known_to_differ
from pytest_llmperf.storage.schema import Baseline, CellRun, Run, TestResult
from pytest_llmperf.system.git import head_commit, is_dirty
from pytest_llmperf.system.interrupts import can_interrupt
from pytest_llmperf.system.tracing import changed_tracing, tracing
from pytest_llmperf.text import slug, some
from pytest_llmperf.verdict.anchor import Anchor, pinned_baselines
from pytest_llmperf.verdict.code_change import CodeChange, code_between, repeating
from pytest_llmperf.verdict.comparison import Comparison, Confirmed
from pytest_llmperf.verdict.judge import is_judged
from pytest_llmperf.verdict.model import CellKey, Outcome, Verdict
from pytest_llmperf.verdict.outcome import Entry
from pytest_llmperf.verdict.screen import ALPHA_FAMILY
from pytest_llmperf.verdict.work_change import WorkChange, work_changes

LEFT_TO_THE_GATE = "possible regression: llmperf gate decides"
LEFT_TO_FRESH_RUNS = "possible regression, not confirmed: run pytest --llmperf"

PROFILED_WARMUP = 2
"""Maximum of warm-up requests in a run that only profiles: the timed and the counted request warm up as well."""

LONGEST_LIST = 3

SLOWEST_RUNS = 10
"""Default time limit of a test's body, in multiples of the baseline's slowest run. Disturbed requests are measured up
to three times, and a test that became three times slower is a regression to report, not a hang."""
SHORTEST_TIMEOUT_S = 10.0
"""Minimum of a limit derived from a baseline, so that one-time work of a process does not look like a hang."""


@dataclass(frozen=True)
class PlannedTest:
    """A collected perf test."""

    key: str
    settings: TestSettings
    spec: ModelSpec | None


class Workplace:
    """Measures and judges; created after collection, in the process that runs the tests.

    Args:
        options: the run's settings.
        tests: the perf tests that will run.
        root: the user's project.
        settings: options with which pytest repeats the same measurement.

    Raises:
        UsageError: a device, model or quantization is not available here.
        BaselineError: the baseline cannot be trusted.
    """

    def __init__(
        self, options: Options, tests: Sequence[PlannedTest], *, root: Path, settings: Sequence[str] = ()
    ) -> None:
        self.options = options
        self._root = root
        self._settings = settings
        self.edited = ""
        self.dead = ""
        """The test at which the device died, and why; empty while it works."""
        self._not_begun = dict.fromkeys(test.key for test in tests)
        fake = is_fake(options.device)
        self._bench = (
            FakeBench(options.device, options.sheet)
            if fake
            else Bench(options.device, options.guards, counted=options.counted, times_only=options.times_only)
        )
        self.progress = self._bench.progress
        self._timeouts = {test.key: _first(test.settings.timeout, options.timeout_s) for test in tests}
        self._check_specs(tests)
        self._engine_options = EngineOptions(
            model=options.model,
            revision=options.revision,
            base_url=options.base_url,
            device=self._bench.device,
            trust_remote_code=options.trust_remote_code,
            prefix_caching=options.shared_prefix > 0,
        )
        if not options.loads_models:
            ENGINES[options.engine].check(self._engine_options)
        if any(self._timeouts.values()) and not (options.isolate or options.tell or can_interrupt()):
            raise UsageError(
                "--llmperf-timeout: this system has no timer signal: add --llmperf-isolate, or leave out the timeout"
            )
        self._layers = {test.key: test.settings.layer() for test in tests}
        start = datetime.now(UTC)
        facts = self._bench.environment()
        self.device_key = counted_device_key(facts) if options.counted and not fake else device_key(facts)
        self.run = Run(
            run_id=f"{start:%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}",
            session_id=os.environ.get("LLMPERF_SESSION_ID") or session_id(f"{start:%Y-%m-%d}"),
            time=start.isoformat(timespec="seconds"),
            commit=head_commit(root),
            dirty=is_dirty(root),
            environment=facts,
        )
        known = self._read_baselines()
        self._known = self._compare_with(known)
        self.comparison = self._compare_with({} if options.measure_only else known)
        self._anchor = self._read_anchor(known)
        self._count_family(tests)

    @property
    def loads(self) -> int:
        """Number of models loaded so far."""
        return self._bench.models.loads

    def load(self, param: str | ModelSpec) -> LoadedModel:
        """Return the model for a test's parameter; load it if it is not the current one.

        Raises:
            ModelError: it cannot be loaded.
        """
        return self._bench.models.get(self._complete(ModelSpec.parse(param)))

    def engine(self, param: str | ModelSpec) -> Engine:
        """Return the engine for a test's parameter: over a model loaded here, or the run's own engine.

        Raises:
            ModelError: the engine or its model cannot be loaded.
            UsageError: the run's engine has a model of its own, and the test asks for another one.
            Unavailable: the run only counts.
        """
        self.refuse_uncounted("how an engine serves requests")
        if self.options.loads_models:
            return TransformersEngine(self.load(param))
        if param not in self.options.served:
            raise UsageError(
                f"engine {param!s}: {self.options.engine} serves one model only; expected a test that does not "
                "parametrize engine"
            )
        return self._bench.own_engine(ENGINES[self.options.engine], self._engine_options)

    def engine_over(self, given: Any, *, name: str | None, revision: str | None) -> Engine:
        """Return an engine as it is, or one over a loaded model or a model that the test built.

        Raises:
            UsageError: the model cannot be served.
        """
        __tracebackhide__ = True
        if name is None and hasattr(given, "serve_one"):
            engine: Engine = given
            return engine
        loaded = self.adopt(given, name=name, revision=revision)
        check_generates(loaded, "llmperf.serve")
        return TransformersEngine(loaded)

    def serve(self, serving: Engine, plan: ServingPlan, *, test: str) -> TestResult:
        """Measure how an engine serves many requests."""
        self.refuse_uncounted("how an engine serves requests")
        if self.options.request_injections:
            raise UsageError(
                f"--llmperf-inject {self.options.request_injections[0]}: served requests have no separate forwards to "
                "slow down: multiply a metric instead, such as output:-15%"
            )
        return self.finished(self._bench.serve(serving, plan, test=test, run_id=self.run.run_id))

    def adopt(self, given: object, *, name: str | None, revision: str | None) -> LoadedModel:
        """Return the handle of a model: of the ``llm`` fixture as it is, or of one that the test built.

        Raises:
            UsageError: it cannot be measured.
        """
        __tracebackhide__ = True
        return adopt(given, name=name, revision=revision, device=self.device)

    def measure(self, loaded: LoadedModel, plan: Plan, *, test: str) -> TestResult:
        """Measure a workload, with the injections of ``--llmperf-inject``.

        A profiling run is only for its profiles, so it measures as little as possible.
        """
        traces = None
        if folder := self.options.profile:
            traces = folder / _trace_name(test, loaded.title, plan)
            plan = replace(plan, requests=1, warmup_cap=min(plan.warmup_cap, PROFILED_WARMUP))
        injections, run_id = self.options.request_injections, self.run.run_id
        result = self._bench.measure(loaded, plan, test=test, run_id=run_id, injections=injections, traces=traces)
        return self.finished(result)

    def finished(self, result: TestResult) -> TestResult:
        """Apply the factors of ``--llmperf-inject`` to a result; mark it invalid if tracing changed during the run.

        The tracing check is not a guard, which users may turn off: the run's recorded environment would be wrong.
        """
        seen = result.observation
        why = changed_tracing(str(self.run.environment["tracing"]), tracing())
        marked = result.model_copy(update={"observation": seen.model_copy(update={"invalid": seen.invalid or why})})
        return _inject(marked, self.options)

    def refuse_uncounted(self, what: str) -> None:
        """Skip a test that measures times, in a run that only counts.

        Raises:
            Unavailable: the run only counts, or its device is fake.
        """
        self.refuse_without_device(what)
        if self.options.counted:
            raise Unavailable(f"--llmperf-counted: {what} is not counted: run it without the option")

    def refuse_without_device(self, what: str) -> None:
        """Skip a test that needs values, if the device is fake.

        Raises:
            Unavailable: it is.
        """
        self._bench.refuse_without_device(what)

    def timer(self, keep: Callable[[Timing], object]) -> KernelTimer:
        """Return a timer of callables on the run's device, without a model; ``keep`` gets each timing."""
        self.refuse_uncounted("the time of a call")
        return KernelTimer(self.device, self._bench.clock, keep)

    def entry(self, test: str, results: list[TestResult], *, timings: Sequence[str] = (), error: str = "") -> Entry:
        """Return the entry of a finished test; ``timings`` are shown beside the recorded results."""
        verdicts = [] if error or self.options.measure_only else self._judge(test, results)
        entry = Entry(
            test=test,
            device_key=self.device_key,
            run=self.run,
            results=results,
            timings=list(timings),
            verdicts=verdicts,
            work_changes=[] if error or self.options.measure_only else self._work_changes(results),
            code_changes=self._code_changes(test, verdicts),
            injected=[str(injection) for injection in self.options.injections],
            fail_on=self.options.fail_on,
            limits=self._limits(test) if self.options.journal else {},
            error=error,
        )
        return entry.suspended(LEFT_TO_THE_GATE, anchored=LEFT_TO_FRESH_RUNS) if self.options.screen else entry

    def confirmed(self, entries: Sequence[Entry], runs: Sequence[Mapping[CellKey, float]]) -> list[Entry]:
        """Judge entries again, with the values that fresh runs measured added to their own.

        Cells that may still fail are tested at Holm's levels, which need all of their p-values.
        """
        values = {key: tuple(run[key] for run in runs if key in run) for key in set().union(*runs)}
        first = [self._judge_again(entry, lambda key: Confirmed(values.get(key, ()))) for entry in entries]
        suspects = [verdict for entry in first for verdict in entry.verdicts if verdict.suspect]
        sizes = holm_family_sizes(
            [1.0 if verdict.p_value is None else verdict.p_value for verdict in suspects],
            size=self.comparison.family_size,
            alpha=ALPHA_FAMILY,
        )
        size_of: dict[CellKey, int] = {}
        for verdict, size in zip(
            suspects, sizes, strict=True
        ):  # against the anchor too: the stricter level holds for both
            size_of[verdict.cell.key] = max(size, size_of.get(verdict.cell.key, 1))
        return [
            self._judge_again(entry, lambda key: Confirmed(values.get(key, ()), size_of.get(key))) for entry in first
        ]

    def load_limit_s(self, test: str) -> float | None:
        """Return the time limit of loading a test's model, in s; ``None`` if none was set."""
        return self._timeouts[test] or None

    def body_limit_s(self, test: str) -> float | None:
        """Return the time limit of a test's body, in s: as set, else ten times the baseline's slowest run."""
        slowest = None if self.options.profile else self._known.slowest_s(test)  # aggregating a profile takes long
        if self._timeouts[test] is not None or slowest is None:
            return self._timeouts[test] or None
        return max(SHORTEST_TIMEOUT_S, SLOWEST_RUNS * slowest)

    @contextmanager
    def contained(self, test: str, phase: str) -> Iterator[None]:
        """Run a phase of a test; out-of-memory, timeout and device errors end it in one line."""
        self._not_begun.pop(test, None)
        self._bench.load_limit_s = self.load_limit_s(test)
        limit_s = self.body_limit_s(test) if phase == TEST_BODY else None
        with (
            self._bench.computing(),
            self._noticing_death(test),
            contained(self.progress, self.device, phase=phase, limit_s=limit_s),
        ):
            yield

    @property
    def not_begun(self) -> list[str]:
        """The tests that have not started, in order."""
        return [*self._not_begun]

    def release(self) -> None:
        """Release the model, and the engine that has a model of its own."""
        self._bench.release()

    def release_loaded(self) -> None:
        """Release the model that the ``llm`` fixture loaded."""
        self._bench.models.release()

    @property
    def device(self) -> str:
        """The device's name in torch."""
        return self._bench.device

    @contextmanager
    def _noticing_death(self, test: str) -> Iterator[None]:
        """Check after a phase whether the device still works; if it does not, even a test that passed fails."""
        try:
            yield
        except (KeyboardInterrupt, SystemExit):  # checking a hung device must not keep the user from quitting
            raise
        except BaseException:
            self._note_death(test)
            raise
        self._note_death(test)
        if self.dead:
            raise MeasurementError(self.dead)

    def _note_death(self, test: str) -> None:
        if not self.dead and (why := why_dead(self.device)):
            self.dead = f"{self.device} died in {test}: {why}"

    def _judge(
        self,
        test: str,
        results: Sequence[TestResult],
        confirmed: Callable[[CellKey], Confirmed] = lambda _: Confirmed(),
    ) -> list[Verdict]:
        limit = self.options.limits(test, self._layers[test])
        found = [verdict for result in results for verdict in self.comparison.verdicts(result, limit, confirmed)]
        if self._anchor:
            found += [verdict for result in results for verdict in self._anchor.verdicts(result, limit, confirmed)]
        return found

    def _work_changes(self, results: Sequence[TestResult]) -> list[WorkChange]:
        """Compare the counted work with the baseline's, and with the anchor's."""
        return [
            change
            for against, comparison in self._comparisons.items()
            for result in results
            for change in work_changes(result, comparison.stored_work(result), against=against)
        ]

    @property
    def _comparisons(self) -> dict[str, Comparison]:
        """The comparisons by the revision of their baselines; empty for the present ones."""
        anchored = {self._anchor.revision: self._anchor.comparison} if self._anchor else {}
        return {"": self.comparison, **anchored}

    def _code_changes(self, test: str, verdicts: Sequence[Verdict]) -> list[CodeChange]:
        """Return what lies between this run and the latest one that each changed figure was compared with."""
        moved = [one for one in verdicts if one.suspect or one.outcome in (Outcome.REGRESSED, Outcome.IMPROVED)]
        found: dict[str, Run] = {}
        for verdict in moved:
            run = self._comparisons[verdict.against].latest_run(verdict)
            if run and (verdict.against not in found or run.time > found[verdict.against].time):
                found[verdict.against] = run
        return [self._code_since(run, test, against) for against, run in found.items()]

    def _code_since(self, run: Run, test: str, against: str) -> CodeChange:
        differences = compare_environments(run.environment, self.run.environment)
        return code_between(self._root, run.commit or "", self.run.commit or "").model_copy(
            update={
                "against": against,
                "base_is_dirty": bool(run.dirty),
                "now_is_dirty": bool(self.run.dirty),
                "differences": known_to_differ(differences),
                "repeat": repeating(test, self._settings),
            }
        )

    def _limits(self, test: str) -> dict[str, Limit]:
        limit = self.options.limits(test, self._layers[test])
        return {metric.key: limit(metric) for metric in METRICS.values() if is_judged(metric)}

    def _judge_again(self, entry: Entry, confirmed: Callable[[CellKey], Confirmed]) -> Entry:
        if entry.error:
            return entry
        return entry.model_copy(update={"verdicts": self._judge(entry.test, entry.results, confirmed)})

    def _complete(self, spec: ModelSpec) -> ModelSpec:
        return spec.with_defaults(
            model=self.options.model or default_model(self._bench.device),
            revision=self.options.revision,
            attention=spec.attention or self.options.attention,
            trust_remote_code=self.options.trust_remote_code,
            adapter=self.options.adapter,
        )

    def _check_specs(self, tests: Sequence[PlannedTest]) -> None:
        for test in tests:
            if test.spec is not None:
                self._bench.check_spec(self._complete(test.spec))

    def _count_family(self, tests: Sequence[PlannedTest]) -> None:
        """Set each comparison's family size: how many timed cells could fail this run, those of the anchor included."""
        limits = {test.key: self.options.limits(test.key, self._layers[test.key]) for test in tests}
        for test in tests:
            self._limits(test.key)  # raises on contradictory limits now, not after measuring
        anchored = self._anchor.comparison.could_fail(limits) if self._anchor else 0
        size = max(1, self.comparison.could_fail(limits) + anchored)
        self.comparison = replace(self.comparison, family_size=size)
        if self._anchor:
            self._anchor = replace(self._anchor, comparison=replace(self._anchor.comparison, family_size=size))

    def _compare_with(self, known: Mapping[str, Baseline]) -> Comparison:
        others = [baseline for key, baseline in known.items() if key != self.device_key]
        return Comparison(known.get(self.device_key), self.run.environment, others=others)

    def _read_baselines(self) -> Mapping[str, Baseline]:
        """Return the baselines that this run is compared with, by device key."""
        path = baseline_path(self.options.baselines, self.device_key)
        if self.options.updates:
            check_writable(path)
        if self.options.measure_only:
            return _only_if_sound(path)
        if self.options.baseline_ref:
            return self._baselines_at(self.options.baseline_ref)
        return read_baselines(self.options.baselines)

    def _read_anchor(self, known: Mapping[str, Baseline]) -> Anchor | None:
        revision = self.options.anchor
        if revision is None or self.options.measure_only:
            return None
        pinned = pinned_baselines(self._root, revision, self.options.baselines, present=known)
        return Anchor(revision, self._compare_with(pinned))

    def _baselines_at(self, revision: str) -> Mapping[str, Baseline]:
        """Return the baselines at a revision; note for the summary how those of the working tree differ."""
        folder = self.options.baselines
        texts = texts_at(self._root, revision, folder)
        present = {path.stem: path.read_text(encoding="utf-8", errors="replace") for path in folder.glob("*.json")}
        changed = [key for key in sorted(texts | present) if texts.get(key) != present.get(key)]
        told = [f"{key}.json in the working tree {_edit(texts.get(key), present.get(key))}" for key in changed]
        self.edited = f"read from {revision}; {some(told, LONGEST_LIST)}" if told else ""
        return parse_baselines(texts, revision=revision)


def _trace_name(test: str, model: str, plan: Plan) -> str:
    """Return a readable name that is unique for each workload of each test."""
    digest = hashlib.sha256(f"{test} {model} {plan}".encode()).hexdigest()[:12]
    return f"{slug(test.rpartition('::')[2])[:80]}-{digest}"


def _first(given: float | None, otherwise: float | None) -> float | None:
    return otherwise if given is None else given


def _edit(then: str | None, now: str | None) -> str:
    return "is new" if then is None else "is missing" if now is None else "differs"


def _only_if_sound(path: Path) -> Mapping[str, Baseline]:
    """Return a device's baseline if it can be trusted. A run that compares nothing needs it only for time limits."""
    with suppress(BaselineError):
        return {path.stem: load_baseline(path)} if path.exists() else {}
    return {}


def _inject(result: TestResult, options: Options) -> TestResult:
    factors = {injection.metric.key: injection.factor for injection in options.factors}
    if not factors:
        return result
    return result.model_copy(
        update={"cells": [_multiplied(cell, factors.get(cell.metric, 1.0)) for cell in result.cells]}
    )


def _multiplied(cell: CellRun, factor: float) -> CellRun:
    if factor == 1.0 or not isinstance(cell.value, int | float):
        return cell
    return cell.model_copy(update={"value": cell.value * factor})
