"""Quantization matrix on any model: every configuration at every batch size and prompt length, per token.

Run it with ``pytest --llmperf --pyargs pytest_llmperf.suite --llmperf-model ORG/NAME``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_llmperf.runner.config import Options

if TYPE_CHECKING:
    from pytest_llmperf import LlmPerf, LoadedModel


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize by the options. Ids read ``nf4-b8-generate``; ``nf4-eager-b8-in64-generate`` with an
    attention and several prompt lengths.
    """
    if not metafunc.config.getoption("llmperf"):
        return
    options = Options.from_config(metafunc.config)
    metafunc.parametrize("llm", options.specs, indirect=True)
    metafunc.parametrize(("batch_size", "input_tokens"), options.shapes.values(), ids=options.shapes)
    metafunc.parametrize("execution", options.executions)


def test_generate(
    llm: LoadedModel, llmperf: LlmPerf, batch_size: int, input_tokens: int | None, execution: str
) -> None:
    llmperf.generate(llm, batch_size=batch_size, input_tokens=input_tokens, execution=execution)
