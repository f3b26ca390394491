"""Perf tests among pytest's items: their keys, settings and models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pytest_llmperf.errors import UsageError
from pytest_llmperf.models.spec import ModelSpec
from pytest_llmperf.runner import MODEL_FIXTURES, OPTIONS
from pytest_llmperf.runner.config import TestSettings
from pytest_llmperf.runner.once import is_repetition, unrepeated

_PACKAGE = Path(__file__).parents[1]


def test_key(item: pytest.Item) -> str:
    """Return a test's name in baselines: its node id, with the module's name for tests of the ready-made suite.

    The suite's tests are the same wherever the package is installed, so their names must not contain its path.
    """
    nodeid = unrepeated(item)
    if item.path.is_relative_to(_PACKAGE):
        module = ".".join((_PACKAGE.name, *item.path.relative_to(_PACKAGE).with_suffix("").parts))
        return f"{module}::{nodeid.partition('::')[2]}"
    return nodeid


test_key.__test__ = False  # type: ignore[attr-defined]  # pytest would collect a function of this name


def settings_of(item: pytest.Item) -> TestSettings:
    """Return the settings of a test's markers.

    Raises:
        UsageError: a marker is wrong.
    """
    try:
        return TestSettings.from_markers(list(item.iter_markers("llmperf")))
    except UsageError as error:
        raise UsageError(f"{item.nodeid}: {error}") from error


def spec_of(item: pytest.Item) -> ModelSpec | None:
    """Return the model that is loaded for a test; ``None`` if there is none.

    Raises:
        UsageError: its parameter names no model.
    """
    param = _model_param(item)
    if param is None:
        return None
    try:
        return ModelSpec.parse(param)
    except UsageError as error:
        raise UsageError(f"{item.nodeid}: {error}") from error


def _model_param(item: pytest.Item) -> Any:
    callspec = getattr(item, "callspec", None)
    loaded = MODEL_FIXTURES if item.config.stash[OPTIONS].loads_models else ("llm",)
    return next((callspec.params[name] for name in loaded if name in callspec.params), None) if callspec else None


def is_wanted(item: pytest.Item) -> bool:
    """Whether an active run measures a perf test: it is no repetition, and no other tests were asked for."""
    only = item.config.stash[OPTIONS].only
    return not is_repetition(item) and (not only or test_key(item) in only)


def one_model_after_another(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """Sort tests by the first appearance of their model, so that no model is loaded twice. The sort is stable.

    pytest also groups tests by parameter, but before 9.2 by the parameter's index, so each module loaded the models
    again.

    Raises:
        UsageError: a test's parameter names no model.
    """
    specs = {item: spec_of(item) for item in items}
    order = {spec: number for number, spec in enumerate(dict.fromkeys(specs.values()))}
    return sorted(items, key=lambda item: order[specs[item]])
