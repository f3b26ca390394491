"""Serving measurements with a fake engine that has known times and its own clock."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean, median

import pytest

from pytest_llmperf.engines.engine import EngineResponse, Sampling
from pytest_llmperf.errors import MeasurementError, UsageError
from pytest_llmperf.hardware.garbage_collector import set_libraries_aside
from pytest_llmperf.measure import contention
from pytest_llmperf.measure.serving_measurement import measure_serving
from pytest_llmperf.measure.serving_plan import NAIVE, OFFLINE, ONLINE, ServingPlan, digest_requests, make_requests
from pytest_llmperf.measure.serving_result import serving_result
from pytest_llmperf.measure.speedup_result import speedup_of

FIRST_S, STEP_S = 0.010, 0.002
"""What a request takes until its first token, and each further one."""


@pytest.fixture(autouse=True)
def _its_own_time(monkeypatch):
    """Disable contention detection and garbage collection, which is slow with torch imported."""
    monkeypatch.setattr(contention, "waits_ms", lambda: None)
    set_libraries_aside()


@dataclass
class FakeEngine:
    """All requests take the same time; one that waits for a slot begins when another ends."""

    device: str | None = None
    late_s: float = 0.0
    gaps_known: bool = True
    missing_tokens: int = 0
    longest: int | None = None
    now: float = 100.0
    served: list = field(default_factory=list)
    releases: int = 0

    name = "fake"
    vocabulary = 50

    @property
    def settings(self):
        return {"limit": 4}

    @property
    def model(self):
        return {"model": "m", "revision": None, "quantization": None, "dtype": "float32", "attention": None}

    def clock(self):
        return self.now

    def serve_one(self, request, sampling):
        self.now += 0.001  # between two requests
        response = self._response(request, begin=0.0)
        self.now += response.last_s
        self.served.append([request])
        return response

    def serve(self, requests, *, max_concurrency, sampling):
        free = [0.0] * max_concurrency
        responses = []
        for request in requests:
            begin = max(request.arrival_s + self.late_s, min(free))
            responses.append(self._response(request, begin))
            free[free.index(min(free))] = responses[-1].last_s
        self.served.append(list(requests))
        return responses

    def _response(self, request, begin):
        steps = request.output_tokens - 1
        return EngineResponse(
            sent_s=request.arrival_s + self.late_s,
            first_s=begin + FIRST_S,
            last_s=begin + FIRST_S + steps * STEP_S,
            input_tokens=len(request.prompt),
            output_tokens=request.output_tokens - self.missing_tokens,
            gaps_s=(STEP_S,) * steps if self.gaps_known else None,
        )

    def release(self):
        self.releases += 1


def plan(**given) -> ServingPlan:
    defaults = {"scheduler": OFFLINE, "requests": 4, "input_tokens": 8, "output_tokens": 6, "repeats": 2}
    return ServingPlan(**defaults | {"warmup_cap": 0} | given)


def measure(engine=None, **given):
    engine = engine or FakeEngine()
    measured = measure_serving(engine, plan(**given), now=engine.clock)
    return serving_result(measured, engine, test="test", run_id="run")


E2E_S = FIRST_S + 5 * STEP_S


def test_naive_serves_one_after_another():
    """Each request arrives when the previous one has ended, so latencies are those of an idle engine."""
    engine = FakeEngine()
    result = measure(engine, scheduler=NAIVE)
    assert [len(requests) for requests in engine.served] == [1] * 12  # an untimed pass and two timed ones
    assert result.value("output") == pytest.approx(24 / (4 * E2E_S + 3 * 0.001))
    assert result.value("ttft") == pytest.approx(1000 * FIRST_S)
    assert result.value("e2e") == pytest.approx(1000 * E2E_S)
    assert result.value("tpot") == pytest.approx(1000 * STEP_S)
    assert result.workload.batch_size == 1
    assert "lateness_ms" not in {cell.metric for cell in result.cells}


def test_offline_serves_all_at_once():
    """The concurrency is the number of requests."""
    result = measure(requests=4)
    assert (result.workload.execution, result.workload.batch_size) == ("offline", 4)
    assert result.value("output") == pytest.approx(4 * 6 / E2E_S)
    assert result.value("total") == pytest.approx(4 * 14 / E2E_S)
    assert result.observation.tokens_produced == 2 * 24
    assert result.observation.requests == 8


def test_online_serves_at_most_so_many():
    """Latencies include the waiting time for a slot."""
    result = measure(scheduler=ONLINE, requests=4, max_batch_size=2)
    assert result.value("output") == pytest.approx(4 * 6 / (2 * E2E_S))
    assert result.value("ttft") == pytest.approx(1000 * (FIRST_S + E2E_S / 2))  # the median of two that wait


def test_latency_counts_from_when_a_request_was_due():
    """A late client must not make the engine look fast."""
    late = measure(FakeEngine(late_s=0.005), scheduler=ONLINE, rate=1.0)
    assert late.value("ttft") == pytest.approx(1000 * (FIRST_S + 0.005))
    assert late.value("lateness") == pytest.approx(5.0)


def test_ratios_are_figures_of_their_own():
    """Offline over naive, for the same requests."""
    engine = FakeEngine()
    naive, offline = measure(engine, scheduler=NAIVE), measure(engine)
    ratio = speedup_of(offline, over=naive).value("speedup")
    assert ratio == pytest.approx(offline.value("output") / naive.value("output"))
    assert ratio == pytest.approx((4 * E2E_S + 0.003) / E2E_S)


def test_the_passes_that_are_timed_follow_untimed_ones():
    """A full-length pass does the setup, short passes warm up, then timed passes follow."""
    engine, phases = FakeEngine(), []
    wanted = plan(scheduler=ONLINE, max_batch_size=2, output_tokens=40, rate=5.0, warmup_cap=10)
    measured = measure_serving(engine, wanted, enter=phases.append, now=engine.clock)
    lengths = [{request.output_tokens for request in requests} for requests in engine.served]
    assert lengths == [{40}] + [{16}] * measured.warmup.requests + [{40}] * 2
    assert {request.arrival_s for request in engine.served[1]} == {0.0}
    assert measured.warmup.steady
    assert phases == ["serving", "warm-up", "timed requests"]
    assert engine.releases == 1


def test_requests_are_the_same_in_every_run():
    """Lengths are within their bounds, ids below the vocabulary size; arrivals change neither."""
    wanted = {"requests": 200, "input_tokens": (3, 9), "output_tokens": (1, 5)}
    requests = make_requests(plan(**wanted), 50)
    assert requests == make_requests(plan(**wanted), 50)
    assert {len(request.prompt) for request in requests} == set(range(3, 10))
    assert {request.output_tokens for request in requests} == set(range(1, 6))
    assert {token for request in requests for token in request.prompt} == set(range(50))
    assert {request.arrival_s for request in requests} == {0.0}
    arriving = make_requests(plan(scheduler=ONLINE, rate=10.0, **wanted), 50)
    assert (
        digest_requests(arriving)
        == digest_requests(requests)
        != digest_requests(make_requests(plan(seed=1, **wanted), 50))
    )


def test_arrivals_are_poisson():
    """The first request arrives at 0; gaps have the mean and median of an exponential distribution."""
    requests = make_requests(plan(scheduler=ONLINE, rate=10.0, requests=5001, input_tokens=1), 50)
    gaps = [after.arrival_s - before.arrival_s for before, after in pairwise(requests)]
    assert requests[0].arrival_s == 0.0
    assert fmean(gaps) == pytest.approx(0.1, rel=0.05)
    assert median(gaps) == pytest.approx(0.0693, rel=0.05)


def test_what_two_runs_must_have_in_common():
    """Engine settings, length bounds and rate are part of the workload."""
    workload = measure(scheduler=ONLINE, input_tokens=(3, 9), rate=50.0, sampling=Sampling(temperature=0.6)).workload
    assert workload.settings == {
        "requests": 4,
        "rate_per_s": 50.0,
        "input_lengths": "3-9",
        "output_lengths": "6-6",
        "limit": 4,
    }
    assert (workload.sampling, workload.quantization) == ("temperature=0.6", "unknown")


def test_gaps_that_are_not_known_have_no_percentiles():
    """Percentiles of only the known gaps would be biased."""
    result = measure(FakeEngine(gaps_known=False))
    (cell,) = [cell for cell in result.cells if cell.metric == "itl_p50_ms"]
    assert (cell.value, cell.reason) == (None, "several tokens arrived at a time: the gaps between them are unknown")
    assert measure().value("itl_p50") == pytest.approx(1000 * STEP_S)


def test_tokens_that_all_came_in_one_read_have_no_tpot(monkeypatch):
    """A busy client may read them together. The other figures stay."""
    monkeypatch.setattr(sys.modules[__name__], "STEP_S", 0.0)
    result = measure(FakeEngine(gaps_known=False))
    (cell,) = [cell for cell in result.cells if cell.metric == "tpot_ms"]
    assert (cell.value, cell.reason) == (None, "several tokens arrived at a time: the gaps between them are unknown")
    assert result.value("ttft") == result.value("e2e") == pytest.approx(1000 * FIRST_S)


def test_tails_need_many_requests():
    """Counted over all timed passes: 200 for p95."""
    few, many = ({cell.metric for cell in measure(requests=n).cells} for n in (99, 100))
    assert "itl_p95_ms" not in few
    assert "itl_p95_ms" in many
    assert "itl_p99_ms" not in many


def test_memory_of_another_process_is_not_read_as_none_used():
    """The value is None, with a reason."""
    cells = {cell.metric: cell for cell in measure().cells}
    assert cells["serving_peak_rss_bytes"].value is None
    assert cells["serving_peak_rss_bytes"].reason == "the engine runs in another process"
    assert measure(FakeEngine(device="cpu")).value("serving_peak_rss_bytes") > 0


def test_a_single_token_has_no_decode():
    """Throughput has a value."""
    result = measure(output_tokens=1)
    assert result.value("tpot") is None
    assert result.value("output") == pytest.approx(4 / FIRST_S)


def test_fewer_tokens_than_asked_for_are_no_number():
    """The engine's setup is released."""
    engine = FakeEngine(missing_tokens=1)
    with pytest.raises(MeasurementError, match="a request produced 5 tokens; expected 6"):
        measure(engine)
    assert engine.releases == 1


def test_lengths_over_the_limit_are_refused_before_anything_is_served():
    """The error has the longest request's lengths."""
    engine = FakeEngine(longest=13)
    with pytest.raises(UsageError, match="8 input and 6 output tokens of one request exceed the engine's limit of 13"):
        measure(engine)
    assert engine.served == []


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"scheduler": "eager"}, "unknown scheduler 'eager': expected one of naive, offline, online"),
        ({"requests": 0}, "requests=0: expected a whole number of at least 1"),
        ({"max_batch_size": 0}, "max_batch_size=0: expected"),
        ({"repeats": True}, "repeats=True: expected"),
        ({"warmup_cap": -1}, "warmup_cap=-1: expected"),
        ({"input_tokens": 0}, "input_tokens=0: expected"),
        ({"input_tokens": (9, 3)}, r"input_tokens=\(9, 3\): expected \(minimum, maximum\)"),
        ({"output_tokens": (1, 2, 3)}, "output_tokens=.*: expected"),
        ({"output_tokens": "many"}, "output_tokens='many': expected"),
        ({"scheduler": ONLINE, "rate": 0}, "rate=0: expected requests per second"),
        ({"scheduler": ONLINE, "rate": -1.0}, "rate=-1.0: expected"),
        ({"scheduler": ONLINE, "rate": float("nan")}, "rate=nan: expected"),
        ({"scheduler": ONLINE, "rate": float("inf")}, "rate=inf: expected"),
        ({"scheduler": ONLINE, "rate": "5"}, "rate='5': expected"),
        ({"scheduler": NAIVE, "rate": 5.0}, "rate=5.0 with the naive scheduler: only the online scheduler"),
        ({"rate": 5.0}, "rate=5.0 with the offline scheduler"),
    ],
    ids=str,
)
def test_bad_input_is_one_line(given, line):
    """Errors name the argument, what was found and what was expected."""
    with pytest.raises(UsageError, match=line):
        plan(**given)


def test_a_shared_prefix():
    """All prompts begin with it. The rest is new in each pass and each run; the digest is that of the first pass."""
    engine, again = FakeEngine(), FakeEngine()
    result = measure(engine, shared_prefix=5, warmup_cap=2)
    prompts = [request.prompt for requests in engine.served for request in requests]
    assert len({prompt[:5] for prompt in prompts}) == 1
    assert len(set(prompts)) == len(prompts) > 12
    assert {request.shared_prefix for request in engine.served[0]} == {5}
    assert result.workload.settings["shared_prefix"] == 5
    assert measure(again, shared_prefix=5).workload == result.workload
    assert again.served[0] == engine.served[0]
    assert not {request.prompt for request in again.served[-1]} & set(prompts)
    assert measure(shared_prefix=4).workload.prompt_sha256 != result.workload.prompt_sha256


def test_without_a_shared_prefix_nothing_changes():
    """Prompts come again in every pass, and baselines keep their digest and settings."""
    engine = FakeEngine()
    result = measure(engine)
    assert engine.served[0] == engine.served[-1]
    assert result.workload.prompt_sha256 == "deec67526f494be8"
    assert "shared_prefix" not in result.workload.settings
    assert "prefix_hit_share" not in {cell.metric for cell in result.cells}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"shared_prefix": 8}, "shared_prefix=8: expected fewer than the 8 tokens of the shortest prompt"),
        ({"shared_prefix": 4, "input_tokens": (3, 9)}, "shared_prefix=4: expected fewer than the 3 tokens of the shor"),
        ({"shared_prefix": -1}, "shared_prefix=-1: expected a whole number of at least 0"),
        ({"shared_prefix": 2.0}, r"shared_prefix=2\.0: expected a whole number of at least 0"),
    ],
)
def test_a_prefix_that_cannot_be_shared(given, message):
    """Each prompt needs a rest of its own."""
    with pytest.raises(UsageError, match=message):
        plan(**given)


def test_given_prompts_are_served_in_order():
    """They have their own lengths, which are part of the workload."""
    engine, given = FakeEngine(), ((1, 2, 3), (4,), (5, 6))
    result = measure(engine, prompts=given, requests=2)
    assert [request.prompt for request in engine.served[-1]] == [*given[:2]]
    assert result.workload.input_tokens == 3
    assert result.workload.settings["input_lengths"] == "1-3"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompts": ((1, 2),)}, "a prompt of 1 sequences for 4 requests: expected one for each"),
        ({"prompts": ((1, 2),) * 4, "shared_prefix": 1}, "shared_prefix=1 with a prompt: expected random ids"),
        ({"prompts": ((1, 50),) * 4}, "the prompt has token id 50: expected ids below the vocabulary of 50"),
    ],
)
def test_prompts_that_cannot_be_served(given, message):
    """Each request needs one of its own."""
    with pytest.raises(UsageError, match=message):
        measure(**given)
