"""pytest configuration of this repository: unit tests and perf tests."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

TESTS = Path(__file__).parent / "tests"
PERF_TESTS = TESTS / "perf"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Skip the unit tests with ``--llmperf``, so that measuring does not need their dependencies."""
    measuring = config.getoption("--llmperf", default=False)
    is_unit_test = collection_path.parent == TESTS and collection_path != PERF_TESTS
    return True if measuring and is_unit_test else None
