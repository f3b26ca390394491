"""Serving tests: the three schedulers compared, and offline throughput.

Run it by its name: ``pytest --llmperf --pyargs pytest_llmperf.suite.serving``. The suite as a whole, which measures
single requests, leaves it out, because pytest does not collect a file of this name by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_llmperf.measure.serving_plan import NAIVE, OFFLINE, ONLINE
from pytest_llmperf.runner.config import Options

if TYPE_CHECKING:
    from pytest_llmperf import Engine, LlmPerf

SEQUENCES, LENGTHS = 256, (100, 1024)
CPU_SEQUENCES, CPU_LENGTHS = 32, (16, 64)
"""Sizes that two cores serve in seconds."""


def test_schedulers(engine: Engine, llmperf: LlmPerf, pytestconfig: pytest.Config) -> None:
    """Serve the same requests with each scheduler; the speedups over one by one are gated, too."""
    options = Options.from_config(pytestconfig)
    for length in options.input_lengths:
        served = {
            name: llmperf.serve(
                engine, scheduler=name, input_tokens=length, rate=options.rate if name == ONLINE else None
            )
            for name in options.schedulers
        }
        naive = served.pop(NAIVE, None)
        if naive:
            for other in served.values():
                llmperf.speedup(other, over=naive)


def test_throughput(engine: Engine, llmperf: LlmPerf, pytestconfig: pytest.Config) -> None:
    """Serve many sequences of mixed lengths, all at once."""
    options = Options.from_config(pytestconfig)
    small = engine.device == "cpu"
    lengths = options.throughput_lengths or (CPU_LENGTHS if small else LENGTHS)
    llmperf.serve(
        engine,
        scheduler=OFFLINE,
        requests=options.throughput_sequences or (CPU_SEQUENCES if small else SEQUENCES),
        input_tokens=lengths,
        output_tokens=lengths,
        shared_prefix=0,
        temperature=0.6,
    )
