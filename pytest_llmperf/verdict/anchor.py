"""Compare with a baseline pinned to a revision, so that small regressions cannot accumulate unnoticed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from pytest_llmperf.errors import BaselineError
from pytest_llmperf.metrics import Limit, Metric
from pytest_llmperf.storage.baseline_file import parse_baseline
from pytest_llmperf.storage.schema import Baseline, TestResult
from pytest_llmperf.system.git import file_at, is_file_at
from pytest_llmperf.verdict.comparison import Comparison, Confirmed
from pytest_llmperf.verdict.model import CellKey, Outcome, Verdict


@dataclass(frozen=True)
class Anchor:
    """Comparison with a device's baseline as of a git revision."""

    revision: str
    comparison: Comparison

    def verdicts(
        self, result: TestResult, limit: Callable[[Metric], Limit], confirmed: Callable[[CellKey], Confirmed]
    ) -> list[Verdict]:
        """Return a verdict for each gating cell of a test, marked with the anchor's revision."""
        found = self.comparison.verdicts(result, limit, confirmed)
        return [self._of_the_anchor(verdict) for verdict in found if verdict.cell.limit.gates]

    def _of_the_anchor(self, verdict: Verdict) -> Verdict:
        is_new = verdict.outcome is Outcome.NEW and verdict.cell.value is not None
        return replace(verdict, against=self.revision, reason="not in that baseline" if is_new else verdict.reason)


def pinned_baseline(root: Path, revision: str, path: Path, *, present: Baseline | None) -> Baseline | None:
    """Return a device's baseline at a revision of the repository around ``root``; ``None`` if it had none.

    The accepted steps of the ``present`` baseline also apply: their cells are not compared until the anchor moves on.

    Raises:
        BaselineError: there is no such revision, or the file is invalid.
    """
    if not is_file_at(root, revision, path):
        return None
    name = f"{revision}:{path.name}"
    baseline = parse_baseline(file_at(root, revision, path), name=name)
    if baseline.device_key != path.stem:
        raise BaselineError(f"{name}: device_key: expected {path.stem!r}, found {baseline.device_key!r}")
    return baseline.model_copy(update={"epochs": [*baseline.epochs, *(present.epochs if present else ())]})
