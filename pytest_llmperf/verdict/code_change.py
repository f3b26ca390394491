"""What lies between the two sides of a comparison besides the measured figures: commits, edits and dependencies."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from pytest_llmperf.storage.baseline_file import Written
from pytest_llmperf.system.git import CommitsBetween, commits_between


class CodeChange(Written):
    """The revisions of both sides, and what lies between them."""

    against: str = ""
    """Git revision of the baseline compared with; empty for the present baseline, or for another revision's run."""
    base: str = ""
    """Commit of the base; empty if unknown."""
    now: str = ""
    base_is_dirty: bool = False
    """Whether the base was measured with changes that are not committed."""
    now_is_dirty: bool = False
    between: CommitsBetween | None = None
    """``None`` if unknown, such as in a shallow clone."""
    differences: tuple[str, ...] = ()
    """Differences of the environment: ``transformers: 5.17 -> 5.23``."""
    repeat: tuple[str, ...] = ()
    """pytest's arguments that measure the test again."""

    @property
    def is_known(self) -> bool:
        """Whether something is known to differ."""
        moved = self.between is not None and bool(self.between.ahead or self.between.behind)
        return moved or self.base_is_dirty or self.now_is_dirty or bool(self.differences)

    @property
    def bisect(self) -> tuple[str, ...]:
        """The command that finds the commit among several; empty if there is nothing to search."""
        searchable = self.between is not None and self.between.ahead > 1 and not self.between.behind
        if not searchable or self.base_is_dirty or self.now_is_dirty:
            return ()
        return ("llmperf", "bisect", self.base[:12], self.now[:12], "--", *self.repeat)


@lru_cache(maxsize=64)  # a run asks about the same two commits for each test
def code_between(folder: Path, base: str, now: str) -> CodeChange:
    """Return what lies between two commits; either may be empty."""
    return CodeChange(base=base, now=now, between=commits_between(folder, base, now))


def repeating(test: str, arguments: Sequence[str]) -> tuple[str, ...]:
    """Return pytest's arguments that run one test with other arguments given.

    If these name no path, the test's own is added, so that only its file is collected.
    """
    if not all(word.startswith("-") for word in arguments):
        return (*arguments, f"--llmperf-only={test}")
    is_path = test.partition("::")[0].endswith(".py")
    return (*([] if is_path else ["--pyargs"]), test, *arguments)
