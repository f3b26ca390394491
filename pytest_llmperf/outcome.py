"""What became of a run: what workers send, sessions collect and reports tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from pytest_llmperf.records.schema import Baseline, Run, TestResult
from pytest_llmperf.text import printable
from pytest_llmperf.verdict.model import Verdict
from pytest_llmperf.verdict.sentence import sentence


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
class Update:
    """What became of the baseline: the file and its window, or why it was left alone."""

    path: Path
    baseline: Baseline | None = None
    refusal: str = ""


@dataclass
class RunOutcome:
    """What became of a whole run."""

    compared: bool
    """Whether verdicts were asked for at all."""
    entries: list[Entry] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    """Tests of the baseline that are not collected any more."""
    update: Update | None = None
    not_kept: str = ""
    """Why what was measured could not be written down."""
    place: tuple[str, ...] = ()
    """What the ``llmperf`` command needs to find the same folder of baselines."""
    settings: tuple[str, ...] = ()
    """What pytest needs to measure the same again."""


def failure_text(failing: Sequence[Verdict], injected: Sequence[str]) -> str:
    """One line for each verdict that fails a test."""
    mark = f" [injected {', '.join(injected)}]" if injected else ""
    return "\n".join(printable(f"{sentence(verdict)}{mark}") for verdict in failing)
