"""A separate cache for synthetic models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_llmperf.system.paths import CACHE_VARIABLE


@pytest.fixture(scope="session", autouse=True)
def synthetic_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("llmperf-cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(folder))
        yield folder


@pytest.fixture
def tiny(synthetic_cache: Path) -> Path:
    """The folder of ``synthetic:tiny``."""
    pytest.importorskip("torch")
    from pytest_llmperf.models.synthetic import prepare

    return prepare("synthetic:tiny")
