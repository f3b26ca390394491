"""Every test here runs the real command line in a repository of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from layout import SLOW, Layout


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models are created once; comparisons do not mix, because each layout has commits of its own."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def layout(tmp_path: Path, cache: Path) -> Layout:
    return Layout(tmp_path, cache)


@pytest.fixture
def engine(layout: Layout) -> Layout:
    """A package installed as editable, and a branch on which it is slower."""
    layout.make_environment()
    layout.project()
    layout.begin()
    layout.install("-e", ".")
    layout.branch({"src/engine/__init__.py": SLOW})
    return layout
