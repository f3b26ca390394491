"""One pytest run: options, hooks, measuring, and the end of the session.

Here is what the plugin and these modules share: names, and the keys of a run's parts in pytest's stashes.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_llmperf.runner.collection import Collection
    from pytest_llmperf.runner.config import Options
    from pytest_llmperf.runner.context import Workplace
    from pytest_llmperf.runner.fixtures import CallRecorder, LlmPerf
    from pytest_llmperf.runner.session import Session

_PLUGIN = "pytest_llmperf.plugin"
MODEL_FIXTURES = ("llm", "engine")
"""Fixtures that take a model as their parameter."""
PERF_FIXTURES = (*MODEL_FIXTURES, "llmperf", "cuda_timer", "peak_memory")

OPTIONS: pytest.StashKey[Options] = pytest.StashKey()
SESSION: pytest.StashKey[Session] = pytest.StashKey()
WORKPLACE: pytest.StashKey[Workplace] = pytest.StashKey()
MODELS: pytest.StashKey[dict[str, str]] = pytest.StashKey()
"""The model of each test that runs, as the ``repr`` of its spec, by node id."""
COLLECTED: pytest.StashKey[Collection] = pytest.StashKey()
FIXTURE: pytest.StashKey[LlmPerf] = pytest.StashKey()
"""Of an item, as is the next one."""
TIMER: pytest.StashKey[CallRecorder] = pytest.StashKey()


def is_perf(item: pytest.Item) -> bool:
    """Whether an item is a perf test: it uses a fixture of ours, or has our marker."""
    return bool(own_fixtures(item)) or item.get_closest_marker("llmperf") is not None


def own_fixtures(item: pytest.Item) -> set[str]:
    """Return our fixtures that a test uses. A project's own ``engine`` fixture makes no perf test."""
    known = getattr(item, "_fixtureinfo", None)  # pytest has no public API for a fixture's origin
    found = known.name2fixturedefs if known else {}
    return {name for name in PERF_FIXTURES if name in found and found[name][-1].func.__module__ == _PLUGIN}


@contextmanager
def as_usage_errors() -> Iterator[None]:
    """Turn the package's errors into pytest's, which end collection in one line with exit code 4."""
    try:
        yield
    except Exception as error:  # any: a run without errors does not import ours
        from pytest_llmperf.errors import LlmperfError

        if isinstance(error, LlmperfError):
            raise pytest.UsageError(str(error)) from error
        raise
