"""What a day is made of: stages of steps, each step a process of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gpu.results import Results

ROOT = Path(__file__).parents[2]
"""The repository."""
PYTEST = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider")
LLMPERF = (sys.executable, "-m", "pytest_llmperf")


@dataclass(frozen=True)
class Place:
    """Where a step runs.

    Args:
        device: as the command line names it.
        folder: for its files; the steps of a stage share it.
    """

    device: str
    folder: Path

    @property
    def is_cuda(self) -> bool:
        """Whether this is the real thing, and no rehearsal on a CPU."""
        return self.device.startswith("cuda")

    @property
    def model(self) -> str:
        """What is measured end to end."""
        return "synthetic:1b" if self.is_cuda else "synthetic:tiny"


@dataclass(frozen=True)
class Step:
    """Some checks in a process of their own.

    Args:
        run: makes them.
        seconds: that it should take on a GPU.
        needs_cuda: so that a rehearsal on a CPU skips it.
    """

    run: Callable[[Place, Results], None]
    seconds: float
    needs_cuda: bool = False

    @property
    def name(self) -> str:
        """As it is told."""
        return self.run.__name__


@dataclass(frozen=True)
class Stage:
    """Steps that belong together.

    Args:
        name: as ``--only`` takes it.
        seconds: that it should take on a GPU.
        steps: in their order.
        at_once: how many steps run at once on a GPU; nothing that is timed should.
        by_name_only: whether it runs only where ``--only`` names it.
    """

    name: str
    seconds: float
    steps: tuple[Step, ...]
    at_once: int = 1
    by_name_only: bool = False


def last_line(text: str) -> str:
    """The last line that is not blank, as what ends a traceback is."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no output")
