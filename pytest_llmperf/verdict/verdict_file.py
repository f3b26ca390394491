"""Write and read the verdict file: every cell with its evidence, as JSON.

``llmperf schema verdicts`` prints its JSON Schema.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from posixpath import join, normpath
from typing import Literal

import pytest
from pydantic import Field, ValidationError

from pytest_llmperf.errors import BaselineError
from pytest_llmperf.stats.interval import Interval
from pytest_llmperf.storage.baseline_file import Written, first_problem, write_model
from pytest_llmperf.storage.provenance import SideProof
from pytest_llmperf.storage.schema import MetricKey, Run, Workload
from pytest_llmperf.text import printable
from pytest_llmperf.verdict.model import Outcome, Verdict, compared_figure
from pytest_llmperf.verdict.outcome import Entry, RunOutcome
from pytest_llmperf.verdict.sentence import sentence
from pytest_llmperf.verdict.why import Why


class CellVerdict(Written):
    """Verdict on one cell with its evidence. Figures are in ``unit``; shares and ratios are relative."""

    metric: MetricKey
    unit: str
    workload: str
    outcome: Outcome
    gates: bool
    fails: bool
    value: int | float | str | None
    baseline: int | float | str | None
    ratio: float | None
    interval: Interval | None
    limit_ratio: float | None
    tolerate: float
    catch: float
    minimum_detectable_effect: float | None
    p_value: float | None
    runs: int
    sessions: int
    blocks: int
    candidates: list[float]
    """All judged figures of this session, if there were several."""
    against: str = ""
    """Git revision of the baseline compared with; empty for the present baseline."""
    sentence: str

    @property
    def counts(self) -> bool:
        """Whether the cell can fail its test: it gates, and this device can measure it."""
        return self.gates and self.is_known

    @property
    def is_known(self) -> bool:
        """Whether there is a present or a baseline figure; otherwise this device cannot measure the metric."""
        return not (self.outcome is Outcome.NEW and self.value is None)

    @property
    def now(self) -> int | float | str | None:
        """The figure that the change refers to."""
        return compared_figure(self.value, self.baseline, self.ratio, self.candidates)


class TestVerdicts(Written):
    """Verdicts of one test or its error, and the command that repeats it."""

    __test__ = False  # pytest would collect a class of this name

    test: str
    file: str = ""
    """File of the test, relative to the repository's root; empty if unknown."""
    line: int | None = None
    error: str
    failed: bool
    workloads: dict[str, Workload]
    cells: list[CellVerdict]
    reproduce: str
    why: Why | None = None
    """Why figures changed: counted work, operators and kernels by time, and the code; ``None`` if nothing changed."""


class VerdictFile(Written):
    """All verdicts of one run. ``decided`` of the ``total`` cells that can fail have a conclusive outcome."""

    schema_version: Literal[1] = 1
    tool: str
    exit_code: int
    failed: bool
    breach: str
    """Reason that the run failed although no test failed."""
    device_key: str
    run: Run | None
    """The first test's run; each xdist worker has its own."""
    injected: list[str]
    outcomes: dict[Outcome, int]
    decided: int
    total: int
    missing: list[str]
    differences: list[str]
    """Differences of the environment from the baseline's latest run, or of head from base, if these were compared."""
    sides: dict[str, SideProof] = Field(default_factory=dict)
    """Commit and imported packages of each side, by ``base`` and ``head``, if two revisions were compared."""
    tests: list[TestVerdicts]


def verdict_file(run: RunOutcome, *, command: Sequence[str], exit_code: int, folder: str = "") -> VerdictFile:
    """Build the verdict file of a run.

    Args:
        run: the run's results.
        command: the command line of the run; with a test's key added, it repeats that test.
        exit_code: the run's exit code.
        folder: folder of the project in its repository.
    """
    first = run.entries[0] if run.entries else None
    outcomes, breach = run.outcomes, run.breach or _unexplained(run, exit_code)
    failed = run.failed or bool(breach)
    return VerdictFile(
        tool=f"pytest-llmperf {version('pytest-llmperf')}",
        exit_code=exit_code or int(failed),
        failed=failed,
        breach=breach,
        device_key=first.device_key if first else run.device_key,
        run=first.run if first else None,
        injected=first.injected if first else [],
        outcomes={outcome: outcomes[outcome] for outcome in Outcome if outcomes[outcome]},
        decided=decided(outcomes),
        total=sum(outcomes.values()),
        missing=run.missing,
        differences=run.differences,
        sides=dict(run.sides),
        tests=[_test_verdicts(entry, command, folder) for entry in run.entries],
    )


def _unexplained(run: RunOutcome, exit_code: int) -> str:
    """Return why pytest failed without a failing verdict, such as a fixture's teardown or another plugin.

    Such a run never counts as passed.
    """
    if exit_code == pytest.ExitCode.OK or (exit_code == pytest.ExitCode.TESTS_FAILED and run.failed):
        return ""
    if exit_code == pytest.ExitCode.INTERRUPTED:
        return "the run was interrupted"
    if exit_code == pytest.ExitCode.NO_TESTS_COLLECTED:
        return "no perf test was run"
    return f"pytest ended with exit code {exit_code} and no verdict explains it: see its output"


def decided(outcomes: Counter[Outcome]) -> int:
    """Count the cells with a conclusive outcome."""
    return sum(count for outcome, count in outcomes.items() if outcome.decided)


def write_verdicts(path: Path, verdicts: VerdictFile) -> None:
    """Write the file atomically.

    Raises:
        BaselineError: it cannot be written.
    """
    write_model(path, verdicts, what="verdicts")


def read_verdicts(path: Path) -> VerdictFile:
    """Read and validate a verdict file.

    Raises:
        BaselineError: it cannot be read, or is not a verdict file.
    """
    try:
        return VerdictFile.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BaselineError(f"cannot read verdicts {path}: {error.strerror or error}") from error
    except ValidationError as error:
        raise BaselineError(
            f"{path}: {printable(first_problem(error))}; expected a file of --llmperf-verdicts"
        ) from error


def _test_verdicts(entry: Entry, command: Sequence[str], folder: str) -> TestVerdicts:
    return TestVerdicts(
        test=entry.test,
        file=_inside_repository(folder, entry.file) if entry.file else "",
        line=entry.line,
        error=entry.error,
        failed=entry.failed,
        workloads={result.workload.hash: result.workload for result in entry.results},
        cells=[_cell_verdict(verdict, fails=entry.failed and verdict in entry.failing) for verdict in entry.verdicts],
        reproduce=shlex.join([*command, f"--llmperf-only={entry.test}"]),
        why=entry.why,
    )


def _inside_repository(folder: str, file: str) -> str:
    path = normpath(join(folder, file))
    return "" if path.startswith(("..", "/")) else path


def _cell_verdict(verdict: Verdict, *, fails: bool) -> CellVerdict:
    cell = verdict.cell
    return CellVerdict(
        metric=cell.metric.key,
        unit=cell.metric.unit,
        workload=cell.workload,
        outcome=verdict.outcome,
        gates=cell.limit.gates,
        fails=fails,
        value=cell.value,
        baseline=verdict.baseline,
        ratio=verdict.ratio,
        interval=verdict.interval,
        limit_ratio=verdict.limit_ratio,
        tolerate=cell.limit.tolerate,
        catch=cell.limit.catch,
        minimum_detectable_effect=verdict.mde,
        p_value=verdict.p_value,
        runs=verdict.runs,
        sessions=verdict.sessions,
        blocks=verdict.blocks,
        candidates=list(verdict.candidates),
        against=verdict.against,
        sentence=sentence(verdict),
    )
