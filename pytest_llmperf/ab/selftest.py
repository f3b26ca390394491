"""Trials of ``llmperf selftest``: the worktree compared with itself, as it is and with an injected slowdown."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_llmperf.ab.blocks import BlockSeries
from pytest_llmperf.ab.selftest_stats import Trial
from pytest_llmperf.ab.side import Side
from pytest_llmperf.ab.stopping import Effort, measure_until_decided
from pytest_llmperf.errors import UsageError
from pytest_llmperf.system.paths import user_folder
from pytest_llmperf.system.pytest_process import without_outputs
from pytest_llmperf.verdict.paired import FEWEST_TO_CHANGE


@dataclass(frozen=True, kw_only=True)
class Selftest:
    """Settings of a selftest."""

    arguments: Sequence[str]
    sizes: Sequence[float]
    """Slowdowns to inject, as shares; the largest is last."""
    kind: str
    """Kind of injection: ``sleep`` or ``work``."""
    pairs: int
    budget_s: float
    most_blocks: int


def parse_sizes(text: str) -> list[float]:
    """Parse shares from ``5%,10%,15%``, and sort them.

    Raises:
        UsageError: the text has another form, or a share is 0.
    """
    found = [re.fullmatch(r"\+?(\d+(?:\.\d+)?)%", part.strip()) for part in text.split(",")]
    shares = {float(one[1]) / 100 for one in found if one}
    if None in found or 0.0 in shares:
        raise UsageError(f"--sizes {text!r}: expected slowdowns above 0, such as 5%,10%,15%")
    return sorted(shares)


class Trials:
    """Trials of a selftest, in fresh processes of the worktree on both sides.

    Iterating yields an A/A pair and one trial of each size, repeatedly, until there are enough or time is up.

    Args:
        wanted: what to inject, how often, and for how long.
        here: the user's working directory.
    """

    def __init__(self, wanted: Selftest, here: Path) -> None:
        here = here.resolve()
        self._wanted = wanted
        self._sides = [Side(name, "", here, sys.executable, dict(os.environ)) for name in ("base", "head")]
        self._folder = user_folder("selftest", hashlib.sha256(str(here).encode()).hexdigest()[:8])
        self._arguments = without_outputs(wanted.arguments)
        self._effort = Effort.from_now(wanted.most_blocks, wanted.budget_s)
        self.device_key = ""

    def __iter__(self) -> Iterator[tuple[int, Trial]]:
        shutil.rmtree(self._folder, ignore_errors=True)
        for number in range(1, self._wanted.pairs + 1):
            for size in (0.0, *self._wanted.sizes):
                trial = self._trial(number, size)
                yield number, trial
                if self._is_time_up(trial):
                    return

    def _trial(self, number: int, size: float) -> Trial:
        series = BlockSeries(
            self._folder / f"{number:03}-{100 * size:g}%",
            *self._sides,
            arguments=self._arguments,
            seed=number,
            head_arguments=[f"--llmperf-inject={self._wanted.kind}:+{100 * size:g}%"] if size else [],
        )
        *_, standing = measure_until_decided(series, self._effort)
        for test in standing.tests:
            if error := standing.error(test):
                raise UsageError(f"{test}: {error}")
        head = series.blocks[0].arms["head"]
        self.device_key = head.baseline.device_key if head.baseline else ""
        cut = bool(standing.undecided) and not self._effort.has_taken_all_looks(len(series.blocks))
        return Trial.of(size, standing, series.blocks, cut=cut)

    def _is_time_up(self, last: Trial) -> bool:
        """Whether the time left is too short to show a change."""
        least_s = FEWEST_TO_CHANGE * last.seconds / last.blocks
        return self._effort.left_s is not None and self._effort.left_s < least_s
