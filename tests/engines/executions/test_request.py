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


def test_tokens_that_come_together_have_one_stamp():
    """Three stamps in 2 ms: 6 tokens follow the 3 that came first. No gap between two tokens is known."""

    def run(on_token):
        for count in (3, 1, 5):
            on_token(count)

    times, _ = time_request(run, TickingClock())
    assert (times.output_tokens, times.tokens) == (9, (3, 1, 5))
    assert times.gaps_ms == [1.0, 1.0]
    assert times.itl_ms == []
    assert times.tpot_ms == 2 / 6
    assert times.step_ms == 1.0
    assert times.e2e_ms == 3.0


def test_tokens_that_all_come_first_have_no_tpot():
    """There is nothing after them."""
    times, _ = time_request(lambda on_token: on_token(4), TickingClock())
    assert (times.tpot_ms, times.step_ms, times.output_tokens) == (None, None, 4)
