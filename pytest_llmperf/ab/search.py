"""What the searches of a bisection have in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from pytest_llmperf.verdict.model import Verdict


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What is known of one candidate: its exact figure, or its differences from GOOD, or why it was skipped."""

    position: int
    value: float | None = None
    differences: Sequence[float] = ()
    """Of ln(value), one for each block; above 0 is worse than GOOD."""
    blocks: int = 0
    skipped: str = ""


class Search(Protocol):
    """A search for the first bad candidate; iterating measures, and yields what each step showed."""

    verdict: Verdict
    """The verdict of the cell that is searched: BAD compared with GOOD."""

    def __iter__(self) -> Iterator[Probe]: ...

    @property
    def probes(self) -> Sequence[Probe]:
        """What is known of each candidate that was asked, in order."""

    @property
    def culprits(self) -> range:
        """Positions of the candidates that may be the first bad one."""

    @property
    def belief(self) -> Sequence[float]:
        """Probability of each candidate to be the first bad one."""

    @property
    def is_over(self) -> bool:
        """Whether no further comparison can narrow the culprits, or need do so."""
