"""What a run decided, as GitHub shows it."""

from __future__ import annotations

from pytest_llmperf.report.terminal import counted
from pytest_llmperf.verdict_file import VerdictFile


def comment(verdicts: VerdictFile) -> str:
    """The body of a pull request's comment."""
    decided = f"{verdicts.decided} of {verdicts.total} gating cells decided: {counted(verdicts.outcomes)}"
    return f"## llmperf\n\n{decided}\n"
