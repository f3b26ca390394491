"""Timing of one request."""

from __future__ import annotations

from ticking_clock import TickingClock

from pytest_llmperf.engines.executions.request import time_request


def test_a_request_is_timed_by_its_stamps():
    """TTFT is start to first token; TPOT is the mean of the gaps."""

    def run(on_token):
        for _ in range(4):
            on_token()

    times, _ = time_request(run, TickingClock())
    assert times.ttft_ms == 1.0
    assert times.itl_ms == [1.0, 1.0, 1.0]
    assert times.tpot_ms == 1.0
    assert times.e2e_ms == 4.0
