"""One pytest run: options, hooks, measuring, and the end of the session.

Here is what the plugin and these modules share: names, and the keys of a run's parts in pytest's stashes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_llmperf.runner.collection import Collection
    from pytest_llmperf.runner.config import Options
    from pytest_llmperf.runner.context import Workplace
    from pytest_llmperf.runner.fixtures import CallRecorder, LlmPerf
    from pytest_llmperf.runner.session import Session

MODEL_FIXTURES = ("llm", "engine")
"""Fixtures that take a model as their parameter."""

OPTIONS: pytest.StashKey[Options] = pytest.StashKey()
SESSION: pytest.StashKey[Session] = pytest.StashKey()
WORKPLACE: pytest.StashKey[Workplace] = pytest.StashKey()
MODELS: pytest.StashKey[dict[str, str]] = pytest.StashKey()
"""The model of each test that runs, as the ``repr`` of its spec, by node id."""
COLLECTED: pytest.StashKey[Collection] = pytest.StashKey()
FIXTURE: pytest.StashKey[LlmPerf] = pytest.StashKey()
"""Of an item, as is the next one."""
TIMER: pytest.StashKey[CallRecorder] = pytest.StashKey()
