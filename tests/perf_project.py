"""Perf tests, fake clocks and options of the user projects that the plugin's tests run."""

from __future__ import annotations

QUICK = (
    "--llmperf",
    "--device=cpu",
    "--llmperf-model=synthetic:tiny",
    "--llmperf-input-tokens=4",
    "--llmperf-output-tokens=4",
    "--llmperf-requests=2",
    "--llmperf-warmup=0",
    "--llmperf-confirm=0",
    "--llmperf-explain=off",
)

FAKE_CLOCK = """
import os

import pytest_llmperf.measure.bench as bench
import pytest_llmperf.runner.context as context

context.SHORTEST_TIMEOUT_S = 600.0  # a busy machine reaches ten seconds


class FakeClock:
    name = "fake"
    now = 0.0

    def stamp(self):
        self.now += float(os.environ.get("STEP_MS", "1"))
        return self.now

    def synchronize(self):
        pass

    def elapsed_ms(self, start, end):
        return end - start


bench.clock_for = lambda device: FakeClock()
"""

DECODE_TEST = """
import pytest


@pytest.mark.parametrize("llm", ["fp32"], indirect=True)
def test_decode(llm, llmperf):
    llmperf.generate(llm, batch_size=2)
"""
