"""A second baseline, pinned to a revision: what ten changes of one per cent each add up to does not pass unseen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from pytest_llmperf.compare import Comparison
from pytest_llmperf.errors import BaselineError
from pytest_llmperf.records.revision import file_at
from pytest_llmperf.records.schema import Baseline, TestResult
from pytest_llmperf.records.store import parse_baseline
from pytest_llmperf.verdict.metrics import Metric
from pytest_llmperf.verdict.model import Limit, Outcome, Verdict


@dataclass(frozen=True)
class Anchor:
    """The comparison with a device's baseline as it was at a revision."""

    revision: str
    comparison: Comparison

    def verdicts(self, result: TestResult, limit: Callable[[Metric], Limit]) -> list[Verdict]:
        """One verdict for each cell of a test that gates, told apart from those on the present baseline."""
        found = self.comparison.verdicts(result, limit)
        return [self._of_the_anchor(verdict) for verdict in found if verdict.cell.limit.gates]

    def _of_the_anchor(self, verdict: Verdict) -> Verdict:
        is_new = verdict.outcome is Outcome.NEW and verdict.cell.value is not None
        return replace(verdict, against=self.revision, reason="not in that baseline" if is_new else verdict.reason)


def baseline_at(root: Path, revision: str, path: Path) -> Baseline:
    """The device's file ``path`` as it was at a revision of the repository that ``root`` lies in.

    Raises:
        BaselineError: there is no such revision or file, or it cannot be trusted.
    """
    name = f"{revision}:{path.name}"
    baseline = parse_baseline(file_at(root, revision, path), name=name)
    if baseline.device_key != path.stem:
        raise BaselineError(f"{name}: device_key: expected {path.stem!r}, found {baseline.device_key!r}")
    return baseline


def with_steps_of(present: Baseline | None, pinned: Baseline) -> Baseline:
    """The pinned baseline with the steps that were accepted since: their cells wait for the anchor to move on."""
    return pinned.model_copy(update={"epochs": [*pinned.epochs, *present.epochs]}) if present else pinned
