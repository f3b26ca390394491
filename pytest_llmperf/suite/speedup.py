"""Speedup of each execution over a bare loop, both measured in one test.

Run it by its name: ``pytest --llmperf --pyargs pytest_llmperf.suite.speedup --llmperf-execution=compile,graph``. The
suite as a whole, which measures each execution alone, leaves it out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_llmperf.runner.config import Options

if TYPE_CHECKING:
    from pytest_llmperf import LlmPerf, LoadedModel

BASE = "loop"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize every execution that the options name, except the one that the others are compared with."""
    if not metafunc.config.getoption("llmperf"):
        return
    options = Options.from_config(metafunc.config)
    metafunc.parametrize("llm", options.specs, indirect=True)
    metafunc.parametrize(("batch_size", "input_tokens"), options.shapes.values(), ids=options.shapes)
    metafunc.parametrize("execution", [name for name in options.executions if name != BASE])


def test_speedup(llm: LoadedModel, llmperf: LlmPerf, batch_size: int, input_tokens: int | None, execution: str) -> None:
    base = llmperf.generate(llm, batch_size=batch_size, input_tokens=input_tokens, execution=BASE)
    other = llmperf.generate(llm, batch_size=batch_size, input_tokens=input_tokens, execution=execution)
    llmperf.speedup(other, over=base)
