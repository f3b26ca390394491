"""Operator profiles: real ones of a tiny model, and their aggregation."""

from __future__ import annotations

import gzip
import json
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from pytest_llmperf import ModelSpec
from pytest_llmperf.engines.conditions import measuring_conditions
from pytest_llmperf.engines.executions.execution import library_generate, unnoticed
from pytest_llmperf.engines.executions.greedy_loop import greedy_loop
from pytest_llmperf.hardware.clock import HostClock
from pytest_llmperf.measure.injection import Delay, StepTimes, inject
from pytest_llmperf.measure.operator_profile import (
    MOST_OPERATORS,
    OUTSIDE,
    OperatorCost,
    Step,
    profile_request,
    step_of,
    typical,
)
from pytest_llmperf.models.load import load
from pytest_llmperf.storage.schema import OTHERS

PRODUCTS = 15
"""Of one step of the tiny model: seven in each of two layers, and the head."""


@pytest.fixture(scope="module")
def tiny(model_cache):
    return load(ModelSpec("synthetic:tiny", "fp32"), "cpu").model


@pytest.fixture
def profiled(tiny, tmp_path):
    """Profiles of a request of the tiny model, with injections."""

    def profile(run, *injections, tokens=5):
        request, clock = partial(run, tiny, torch.ones(1, 3, dtype=torch.int64)), HostClock()
        with measuring_conditions():
            request(2, unnoticed)
            if injections:
                steps = StepTimes(prefill_ms=1.0, decode_ms=1.0)
                request = inject(request, injections, model=tiny, steps=steps, device="cpu", clock=clock)
            return profile_request(request, tokens, device="cpu", clock=clock, traces=tmp_path / "traces" / "one")

    return profile


def named(phase):
    return {one.name: one for one in phase.operators}


@pytest.mark.parametrize("run", [greedy_loop, library_generate])
def test_operators_are_told_per_token_and_per_request(profiled, tmp_path, run):
    """Each phase has its own profile, and a trace that a browser can open."""
    found = profiled(run)
    assert list(found) == ["prefill", "decode"]
    for name, phase in found.items():
        assert named(phase)["aten::mm"].calls == PRODUCTS
        assert named(phase)["aten::mm"].self_ms > 0
        trace = json.loads(gzip.decompress((tmp_path / "traces" / f"one-{name}.json.gz").read_bytes()))
        assert (
            sum(event.get("name") == "aten::mm" for event in trace["traceEvents"])
            == PRODUCTS * (1, 4)[name == "decode"]
        )


def test_real_work_is_seen_where_it_is_done(profiled):
    """Injected matrix products add calls and time to that operator."""
    found = profiled(greedy_loop, Delay("work", ms=20.0))["decode"]
    largest = max(found.operators, key=lambda one: one.self_ms)
    assert largest.name == "aten::mm"
    assert largest.calls >= PRODUCTS + 8


def test_a_wait_is_outside_of_operators(profiled):
    """Time outside of operators has a row, so host rows add up to the step."""
    found = profiled(greedy_loop, Delay("sleep", ms=20.0))["decode"]
    assert named(found)[OUTSIDE].self_ms >= 20
    assert found.wall_ms >= 20


def test_a_single_token_has_no_decode(profiled):
    """There is only a prefill."""
    assert list(profiled(greedy_loop, tokens=1)) == ["prefill"]


def test_a_request_that_fails_leaves_no_profiler_behind(profiled):
    """The next request can be profiled."""

    def fails(_model, _prompt, tokens, on_token):
        on_token()
        if tokens > 2:
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        profiled(fails)
    assert profiled(greedy_loop)


def averaged(key, kind, us, count, **more):
    host, device = (us, 0) if kind == "CPU" else (0, us)
    return SimpleNamespace(
        key=key, device_type=SimpleNamespace(name=kind), self_cpu_time_total=host, self_device_time_total=device,
        count=count, **more,
    )  # fmt: skip


def test_kernels_are_told_beside_the_operators_that_launch_them():
    """By device time; only host rows add up to the wall time, and annotations are excluded."""
    averages = [
        averaged("aten::mm", "CPU", 400, 8),
        averaged("gemv", "CUDA", 3000, 8),
        averaged("ProfilerStep#0", "CUDA", 9000, 1, is_user_annotation=True),
    ]
    step = step_of(averages, wall_ms=4.0, count=4)
    assert step.wall_ms == 1.0
    assert step.spent == {
        ("aten::mm", "host"): OperatorCost(0.1, 2.0),
        ("gemv", "device"): OperatorCost(0.75, 2.0),
        (OUTSIDE, "host"): OperatorCost(0.9, 0.0),
    }


def test_the_median_request_counts():
    """A wait in one request, or an operator of one request in three, is ignored."""
    usual = {("a", "host"): OperatorCost(1.0, 2.0)}
    waited = {("a", "host"): OperatorCost(9.0, 2.0), ("b", "host"): OperatorCost(5.0, 1.0)}
    found = typical([Step(2.0, usual), Step(12.0, waited), Step(2.0, usual)])
    assert found.wall_ms == 2.0
    assert [(one.name, one.self_ms) for one in found.operators] == [("a", 1.0), ("b", 0.0)]


def test_a_profile_is_bounded():
    """Small operators are summed by place; names are truncated."""
    spent = {(f"{number}", "host"): OperatorCost(1000.0 - number, 1.0) for number in range(MOST_OPERATORS + 2)}
    found = typical([Step(1.0, spent)]).operators
    assert len(found) == MOST_OPERATORS + 1
    assert (found[-1].name, found[-1].calls) == (OTHERS, 2.0)
    long = step_of([averaged("x" * 5000, "CUDA", 1, 1), averaged("x" * 6000, "CUDA", 1, 1)], wall_ms=1.0, count=1)
    ((name, _),) = (key for key in long.spent if key[1] == "device")
    assert len(name) == 300
