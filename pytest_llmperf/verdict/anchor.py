"""Compare with a baseline pinned to a revision, so that small regressions cannot accumulate unnoticed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pytest_llmperf.metrics import Limit, Metric
from pytest_llmperf.storage.baseline_folder import parse_baselines, texts_at
from pytest_llmperf.storage.merge import with_cells
from pytest_llmperf.storage.schema import Baseline, TestResult
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


def pinned_baselines(
    root: Path, revision: str, folder: Path, *, present: Mapping[str, Baseline]
) -> dict[str, Baseline]:
    """Return the baselines of a folder at a revision of the repository around ``root``, by device key.

    The accepted steps of the ``present`` baselines also apply: their cells are not compared until the anchor moves on.

    Raises:
        BaselineError: there is no such revision, or a file is invalid.
    """
    pinned = parse_baselines(texts_at(root, revision, folder), revision=revision)
    for key, baseline in present.items():
        then = pinned.get(key) or with_cells(baseline, [])
        pinned[key] = then.model_copy(update={"epochs": [*then.epochs, *baseline.epochs]})
    return pinned
