"""Injections into a model's forwards: they take effect, have the requested size, are marked, and are removed."""

from __future__ import annotations

import json

import pytest
import torch

from pytest_llmperf import ModelSpec
from pytest_llmperf.errors import UsageError
from pytest_llmperf.hardware.clock import HostClock
from pytest_llmperf.measure.generation import Plan, measure_generation
from pytest_llmperf.measure.injection import Delay, Hold, SmallerBatch, StepTimes, inject, parse_injection
from pytest_llmperf.models.load import load
from pytest_llmperf.runner.config import Factor

MIB = 1024**2


@pytest.fixture(scope="module")
def tiny(model_cache):
    return load(ModelSpec("synthetic:tiny", "fp32"), "cpu").model


def measured(model, *injections, execution="loop"):
    plan = Plan(batch_size=1, input_tokens=8, output_tokens=9, execution=execution, requests=9, warmup_cap=2)
    return measure_generation(model, plan, device="cpu", clock=HostClock(), injections=injections)


def tpot(measurement):
    return min(times.tpot_ms for times in measurement.requests)


@pytest.mark.parametrize("text", ["work:+15%", "sleep:+7.5%", "sleep:2ms", "work:0.5ms", "hold:64MiB", "batch:-25%"])
def test_an_injection_is_written_as_it_is_read(text):
    """The displayed text can be parsed again."""
    assert str(parse_injection(text)) == text


@pytest.mark.parametrize(
    "text",
    ["batch:+25%", "batch:-0%", "work:15%", "sleep:-15%", "sleep:0ms", "hold:64", "hold:0MiB", "work", "sleep:+5%%"],
)
def test_another_amount_is_refused(text):
    """The error has the valid forms."""
    with pytest.raises(UsageError, match="expected an amount above 0, as in work:"):
        parse_injection(text)


def test_other_kinds_are_factors():
    """Other names are those of metrics."""
    assert parse_injection("tpot:+50%") is None
    assert str(Factor.parse("tpot:+50%")) == "tpot:+50%"


@pytest.mark.parametrize("execution", ["loop", "generate"])
@pytest.mark.parametrize("kind", ["sleep", "work"])
def test_each_token_takes_longer_by_the_share(tiny, kind, execution):
    """Four times as long, within a wide margin; a sleep dispatches no operators, work does; tokens stay."""
    plain = measured(tiny, execution=execution)
    slow = measured(tiny, Delay(kind, share=3.0), execution=execution)
    assert tpot(slow) > 1.5 * tpot(plain)
    more = slow.counts.figure("operators_per_token").value - plain.counts.figure("operators_per_token").value
    assert more > 0 if kind == "work" else more == 0
    assert slow.counts.token_digest == plain.counts.token_digest


def test_a_wait_of_so_many_milliseconds(tiny):
    """In each forward, including the prefill."""
    slow = measured(tiny, Delay("sleep", ms=5.0))
    assert tpot(slow) > 5
    assert all(times.ttft_ms > 5 for times in slow.requests)


@pytest.mark.parametrize("execution", ["loop", "generate"])
def test_memory_is_held_during_decode_alone(tiny, execution):
    """To the byte, and not in the next request's prefill."""
    plain = measured(tiny, execution=execution).peaks
    held = measured(tiny, Hold(64), execution=execution).peaks
    assert held["decode"].allocated_bytes - plain["decode"].allocated_bytes == 64 * MIB
    assert held["prefill"].allocated_bytes == plain["prefill"].allocated_bytes


def test_a_smaller_batch_is_served(tiny):
    """Fewer tokens are produced; the plan, and so the workload, stays."""
    plan = Plan(batch_size=4, input_tokens=8, output_tokens=3, execution="loop", requests=2, warmup_cap=0)
    plain, fewer = (
        measure_generation(tiny, plan, device="cpu", clock=HostClock(), injections=injections)
        for injections in ((), (SmallerBatch(0.25),))
    )
    assert (fewer.batch_size, fewer.tokens_produced) == (3, 2 * 3 * 3)
    assert (fewer.plan, fewer.prompt_sha256) == (plain.plan, plain.prompt_sha256)
    assert fewer.counts.cache.total_bytes == plain.counts.cache.total_bytes * 3 // 4


@pytest.mark.parametrize(("batch_size", "share"), [(1, 0.25), (4, 1.0), (4, 0.05)])
def test_a_batch_that_cannot_be_that_much_smaller(tiny, batch_size, share):
    """The batch would be unchanged or empty."""
    plan = Plan(batch_size=batch_size, input_tokens=8, output_tokens=3, execution="loop", requests=2, warmup_cap=0)
    with pytest.raises(UsageError, match=rf"a batch of {batch_size} would become"):
        measure_generation(tiny, plan, device="cpu", clock=HostClock(), injections=[SmallerBatch(share)])


def test_nothing_is_left_on_the_model(tiny):
    """Hooks are removed, even if the request fails."""

    def fails():
        assert tiny._forward_hooks
        assert tiny._forward_pre_hooks
        raise RuntimeError("out of memory")

    steps = StepTimes(prefill_ms=1.0, decode_ms=1.0)
    injections = [Delay("sleep", share=0.1), Delay("work", ms=0.01), Hold(1)]
    request = inject(fails, injections, model=tiny, steps=steps, device="cpu", clock=HostClock())
    with pytest.raises(RuntimeError), torch.inference_mode():
        request()
    assert not tiny._forward_hooks
    assert not tiny._forward_pre_hooks


@pytest.mark.parametrize(
    ("injection", "metric"), [("work:+10%", "operators_per_token"), ("hold:64MiB", "decode_peak_allocated")]
)
def test_the_gate_turns_red_and_says_that_it_was_made_to(project, injection, metric):
    """From the command line; every report marks the injection."""
    project.write()
    project.record(1.00, 1.01, 0.99)
    result = project.run(f"--llmperf-inject={injection}", "--llmperf-json=out", f"--llmperf-gate={metric}")
    assert result.ret == 1
    result.stdout.fnmatch_lines([f"*INJECTED {injection}*", f"*injected {injection}*", "FAILED *"])
    (written,) = (project.path / "out").glob("*.json")
    assert json.loads(written.read_text())["injected"] == [injection]
    assert project.run(f"--llmperf-gate={metric}").ret == 0


def test_a_run_with_injections_never_enters_a_baseline(project):
    """Like every injection."""
    project.write()
    assert project.run("--llmperf-inject=sleep:+15%", "--llmperf-update").ret == 4
