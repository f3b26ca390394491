"""Quantization matrix on any model: every configuration at every batch size, per token.

Run it with ``pytest --llmperf --pyargs pytest_llmperf.suite --llmperf-model ORG/NAME``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_llmperf.runner.config import Options

if TYPE_CHECKING:
    from pytest_llmperf import LlmPerf, LoadedModel


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize by the options. Ids read ``nf4-b8-generate``; ``nf4-eager-b8-generate`` with an attention."""
    if not metafunc.config.getoption("llmperf"):
        return
    options = Options.from_config(metafunc.config)
    metafunc.parametrize("llm", options.specs, indirect=True)
    metafunc.parametrize("batch_size", options.batch_sizes, ids=lambda size: f"b{size}")
    metafunc.parametrize("execution", options.executions)


def test_generate(llm: LoadedModel, llmperf: LlmPerf, batch_size: int, execution: str) -> None:
    llmperf.generate(llm, batch_size=batch_size, execution=execution)
