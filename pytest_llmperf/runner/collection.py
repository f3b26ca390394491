"""Record the tests, files and folders that a run collected, to tell which baseline tests are missing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest

SELECTING = ("quantization", "attention", "batch_sizes", "execution", "schedulers", "engine")
"""Our options that decide which tests exist, for functions parametrized from them."""
SELECTING_IN_SUITE = (*SELECTING, "input_tokens")
"""The same for the ready-made suite."""


class Collection:
    """Records perf tests, and the files and folders that were collected as a whole.

    Registered in an active run.

    Args:
        config: of the run.
        key_of: returns the key of a perf test; ``None`` for other tests.
    """

    def __init__(self, config: pytest.Config, key_of: Callable[[pytest.Item], str | None]) -> None:
        self._config = config
        self._key_of = key_of
        self._reported: dict[str, str] = {}
        self._place_of: dict[str, str] = {}
        self._deselected: set[str] = set()
        self.tests: set[str] = set()
        """Keys of the collected perf tests, including those deselected later."""
        self.by_options: set[str] = set()
        """Keys of functions, without parameters, that are parametrized from our options."""

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        """Record every perf test. The key of a test of the ready-made suite is not its node id."""
        if key := self._key_of(item):
            self.tests.add(key)
            self._place_of[_file_of(key)] = _file_of(item.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Record the outcome of a file, folder or class. pytest reports none that only led to an argument."""
        place = _file_of(report.nodeid)
        if self._reported.get(place, "passed") == "passed":
            self._reported[place] = report.outcome

    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        """Record deselected perf tests."""
        self._deselected.update(filter(None, map(self._key_of, items)))

    def is_narrowed(self, kept: Iterable[str]) -> bool:
        """Whether this run leaves out tests that another run may include.

        Args:
            kept: keys of the tests that run.
        """
        single_tests = any("::" in argument for argument in self._config.args)
        return single_tests or bool(self._config.getoption("lf", False) or self._deselected.difference(kept))

    def would_find(self, test: str) -> bool:
        """Whether this run would have collected a test if it still existed."""
        return self._is_searched(_file_of(test)) and not self._is_unselected(test)

    def _is_searched(self, file: str) -> bool:
        if self._reported.get(self._place_of.get(file, file)) == "passed":
            return True
        path = self._config.rootpath / file
        if path.exists() or file.startswith("pytest_llmperf."):  # the suite's keys name modules, not files
            return False
        folder = next(parent for parent in path.parents if parent.exists())
        ignored = self._config.hook.pytest_ignore_collect(collection_path=path, config=self._config)
        return not ignored and self._reported.get(self._nodeid(folder)) == "passed"

    def _is_unselected(self, test: str) -> bool:
        """Whether one of our options may have left out the test in this run."""
        function = test.partition("[")[0]
        of_suite = function.startswith("pytest_llmperf.")
        names = SELECTING_IN_SUITE if of_suite else SELECTING
        given = any(self._config.getoption(f"llmperf_{name}") is not None for name in names)
        return given and (of_suite or function in self.by_options)

    def _nodeid(self, folder: Path) -> str:
        root = self._config.rootpath
        return folder.relative_to(root).as_posix() if folder.is_relative_to(root) else str(folder)


def _file_of(nodeid: str) -> str:
    return nodeid.partition("::")[0]
