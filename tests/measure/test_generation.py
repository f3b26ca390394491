"""Measurements of generation, and plans that are refused."""

from __future__ import annotations

import pytest
from ticking_clock import TickingClock

from pytest_llmperf import ModelSpec
from pytest_llmperf.errors import MeasurementError, UsageError
from pytest_llmperf.measure.generation import Plan, measure_generation
from pytest_llmperf.models.load import load


@pytest.fixture(scope="module")
def tiny(model_cache):
    return load(ModelSpec("synthetic:tiny", "fp32"), "cpu")


def plan(**changes) -> Plan:
    base = {"batch_size": 2, "input_tokens": 5, "output_tokens": 4, "execution": "loop", "requests": 3, "warmup_cap": 6}
    return Plan(**base | changes)


@pytest.mark.parametrize("execution", ["generate", "loop"])
def test_a_measurement_holds_every_request(tiny, execution):
    """Requests, tokens, counters, memory and warm-up, with a clock that advances once per token."""
    found = measure_generation(tiny.model, plan(execution=execution), device="cpu", clock=TickingClock())
    assert len(found.requests) == 3
    assert found.tokens_produced == 3 * 2 * 4
    assert [times.itl_ms for times in found.requests] == [[1.0] * 3] * 3
    assert found.warmup.steady
    assert found.counts.figure("operators_per_token").value > 50
    config = tiny.model.config
    per_position = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    assert found.counts.cache.total_bytes == 2 * (5 + 3) * per_position
    assert found.peaks["decode"].allocated_bytes > found.counts.cache.total_bytes
    assert found.peaks["prefill"].rss_bytes is None or found.peaks["prefill"].rss_bytes > 0


def test_only_times(tiny):
    """Warm-up and timed requests as always, and no request after them."""
    entered = []
    found = measure_generation(
        tiny.model, plan(times_only=True), device="cpu", clock=TickingClock(), enter=entered.append
    )
    assert entered == ["setting up", "warm-up", "timed requests"]
    assert (len(found.requests), found.warmup.steady, found.tokens_produced) == (3, True, 3 * 2 * 4)
    assert (found.counts, found.peaks, found.figures) == (None, {}, ())


def test_identical_measurements_agree_on_what_is_exact(tiny):
    """Operators, tokens, cache size and CPU memory are the same in every run."""
    one, two = (measure_generation(tiny.model, plan(), device="cpu", clock=TickingClock()) for _ in range(2))
    assert one.counts == two.counts
    assert [peak.allocated_bytes for peak in one.peaks.values()] == [
        peak.allocated_bytes for peak in two.peaks.values()
    ]
    assert one.prompt_sha256 == two.prompt_sha256


@pytest.mark.parametrize("execution", ["generate", "loop"])
def test_a_request_longer_than_the_models_limit_is_refused(tiny, execution):
    """Before anything runs."""
    with pytest.raises(UsageError, match=r"5 input and 100000 output tokens exceed the model's limit of \d+ positions"):
        measure_generation(
            tiny.model, plan(output_tokens=100_000, execution=execution), device="cpu", clock=TickingClock()
        )


def test_a_model_that_stops_early_is_an_error(tiny, monkeypatch):
    """With the library's own generate."""
    real = tiny.model.generate

    def stops(prompt, *, generation_config, **kwargs):
        generation_config.update(max_new_tokens=2)
        return real(prompt, generation_config=generation_config, **kwargs)

    monkeypatch.setattr(tiny.model, "generate", stops)
    with pytest.raises(MeasurementError, match="produced 2 tokens"):
        measure_generation(tiny.model, plan(execution="generate"), device="cpu", clock=TickingClock())


def test_tokens_without_a_stamp_are_an_error(tiny, monkeypatch):
    """A streamer that hears of fewer tokens than there are would make times too long."""
    real = tiny.model.generate

    def loses(prompt, *, streamer, **kwargs):
        put, calls = streamer.put, iter(range(1000))
        monkeypatch.setattr(streamer, "put", lambda value: next(calls) % 2 or put(value))
        return real(prompt, streamer=streamer, **kwargs)

    monkeypatch.setattr(tiny.model, "generate", loses)
    with pytest.raises(MeasurementError, match="produced 4 tokens for each prompt, and 2 were counted when they came"):
        measure_generation(tiny.model, plan(execution="generate"), device="cpu", clock=TickingClock())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size=0: expected a whole number of at least 1"),
        ({"output_tokens": 2.5}, "output_tokens=2.5"),
        ({"requests": True}, "requests=True"),
        ({"warmup_cap": -1}, "warmup_cap=-1: expected a whole number of at least 0"),
        ({"execution": "fast"}, "unknown execution 'fast': expected one of generate, loop"),
    ],
)
def test_a_plan_checks_its_numbers(change, message):
    """Errors name the wrong arguments of ``llmperf.generate``."""
    with pytest.raises(UsageError, match=message):
        plan(**change)
