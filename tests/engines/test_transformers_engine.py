"""The transformers engine with a real tiny model: its responses, and its clean-up."""

from __future__ import annotations

import threading
import time
from itertools import pairwise
from types import SimpleNamespace

import pytest
from continuous_batching import SERVES, needs_continuous_batching

from pytest_llmperf import ModelSpec
from pytest_llmperf.engines.engine import EngineRequest, Sampling
from pytest_llmperf.engines.transformers import TransformersEngine
from pytest_llmperf.errors import MeasurementError, UsageError
from pytest_llmperf.measure import timeout
from pytest_llmperf.measure.progress import Progress
from pytest_llmperf.measure.timeout import time_limit
from pytest_llmperf.models.load import load

GREEDY = Sampling()


@pytest.fixture(scope="module")
def eager(model_cache):
    """A model with eager attention, which continuous batching has to switch."""
    return load(ModelSpec("synthetic:tiny", "fp32", attention="eager"), "cpu")


@pytest.fixture
def engine(eager):
    threads = threading.enumerate()
    engine = TransformersEngine(eager)
    yield engine
    engine.release()
    assert [thread for thread in threading.enumerate() if thread not in threads] == []
    assert eager.model.config._attn_implementation == "eager"


def requests(*lengths, gap_s=0.0):
    return [
        EngineRequest(prompt=tuple(range(3, 3 + inputs)), output_tokens=outputs, arrival_s=number * gap_s)
        for number, (inputs, outputs) in enumerate(lengths)
    ]


def check(response, request):
    assert (response.input_tokens, response.output_tokens) == (len(request.prompt), request.output_tokens)
    assert request.arrival_s <= response.sent_s < response.first_s <= response.last_s
    assert len(response.gaps_s) == request.output_tokens - 1
    assert sum(response.gaps_s) == pytest.approx(response.last_s - response.first_s)


def test_what_is_served(engine):
    """The engine reports the model as loaded."""
    assert engine.model == {
        "model": "synthetic:tiny",
        "revision": engine.model["revision"],
        "quantization": "fp32",
        "dtype": "float32",
        "attention": "eager",
    }
    assert (engine.vocabulary, engine.longest, engine.device) == (512, 8193, "cpu")  # the last token needs no position


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=0.6, top_k=5, top_p=0.9)], ids=str)
def test_a_single_request(engine, sampling):
    """It has the requested number of tokens and a timestamp for each."""
    (request,) = requests((5, 7))
    response = engine.serve_one(request, sampling)
    assert response.sent_s == 0.0 < response.first_s
    assert (response.input_tokens, response.output_tokens, len(response.gaps_s)) == (5, 7, 6)
    assert engine.settings == {}


@needs_continuous_batching
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=0.6, top_k=5, top_p=0.9)], ids=str)
def test_requests_side_by_side(engine, sampling):
    """Requests of different lengths, more than run at once; the longest fills its cache blocks."""
    wanted = requests((5, 7), (250, 6), (3, 1), (17, 12), (9, 2))
    for request, response in zip(wanted, engine.serve(wanted, max_concurrency=2, sampling=sampling), strict=True):
        check(response, request)
    assert engine.settings["serving_attention"] == "paged|eager"
    assert engine.settings["cache_blocks"] == 2


@needs_continuous_batching
def test_no_more_than_may_run_at_once(engine):
    """At concurrency 1, each request begins after the previous one has ended."""
    responses = engine.serve(requests((4, 5), (4, 5), (4, 5)), max_concurrency=1, sampling=GREEDY)
    for before, after in pairwise(responses):
        assert before.last_s < after.first_s
    assert responses[2].sent_s < responses[0].last_s  # it waited inside, not outside


@needs_continuous_batching
def test_requests_arrive_when_they_are_due(engine):
    """None begins before its arrival."""
    wanted = requests((4, 2), (4, 2), (4, 2), gap_s=0.05)
    for request, response in zip(wanted, engine.serve(wanted, max_concurrency=4, sampling=GREEDY), strict=True):
        check(response, request)


@needs_continuous_batching
def test_what_is_set_up_serves_again_and_a_single_request_ends_it(engine, eager):
    """Passes share the setup; generate runs with the model's own attention."""
    engine.serve(requests((4, 3), (8, 3)), max_concurrency=2, sampling=GREEDY)
    first = engine._manager
    engine.serve(requests((4, 2), (5, 3)), max_concurrency=2, sampling=GREEDY)
    assert engine._manager is first
    engine.serve(requests((4, 9), (8, 9)), max_concurrency=2, sampling=GREEDY)
    assert engine._manager is not first
    engine.serve_one(requests((4, 2))[0], GREEDY)
    assert eager.model.config._attn_implementation == "eager"


@needs_continuous_batching
def test_blocks_are_shared_only_where_prompts_share_a_prefix(engine):
    """Without a shared prefix the settings are as they always were."""
    prompts = [(*range(3, 23), number) for number in range(2)]
    shared = [EngineRequest(prompt=prompt, output_tokens=2, shared_prefix=20) for prompt in prompts]
    assert [one.cached_tokens for one in engine.serve(shared, max_concurrency=2, sampling=GREEDY)] == [None, None]
    assert engine.settings["block_sharing"] is True
    engine.serve(requests((21, 2), (21, 2)), max_concurrency=2, sampling=GREEDY)
    assert "block_sharing" not in engine.settings


@needs_continuous_batching
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_quantized_models_are_served(model_cache, quantization):
    """Layers of bitsandbytes work in the scheduler's thread."""
    engine = TransformersEngine(load(ModelSpec("synthetic:tiny", quantization), "cpu"))
    wanted = requests((5, 4), (9, 3))
    for request, response in zip(wanted, engine.serve(wanted, max_concurrency=2, sampling=GREEDY), strict=True):
        check(response, request)
    engine.close()


@needs_continuous_batching
def test_a_model_that_breaks_ends_in_its_own_error(engine, eager, monkeypatch):
    """The thread's error is raised, and nothing waits for missing responses."""
    monkeypatch.setattr(eager.model.model.norm, "forward", lambda *_: (_ for _ in ()).throw(ValueError("no norm")))
    with pytest.raises(RuntimeError, match="continuous batching failed: ValueError: no norm"):
        engine.serve(requests((4, 3), (4, 3)), max_concurrency=1, sampling=GREEDY)
    assert engine._manager is None


@needs_continuous_batching
def test_a_cache_that_does_not_fit_ends_in_one_line(engine, monkeypatch):
    """The thread fails before it serves anything."""
    from transformers.generation.continuous_batching.cache import PagedAttentionMemoryHandler

    monkeypatch.setattr(PagedAttentionMemoryHandler, "get_available_memory", lambda *_: 1)
    with pytest.raises(RuntimeError, match="continuous batching failed: MemoryError: Memory footprint"):
        engine.serve(requests((4, 3)), max_concurrency=1, sampling=GREEDY)


@needs_continuous_batching
def test_a_time_limit_ends_it_and_its_thread(engine, monkeypatch):
    """The limit expires while the main thread waits; its repeated signals do not interrupt the clean-up."""
    monkeypatch.setattr(timeout, "REMIND_S", 0.05)
    monkeypatch.setattr(engine._loaded.model.model.norm, "forward", _slow(engine._loaded.model.model.norm.forward))
    start = time.monotonic()
    with (
        pytest.raises(MeasurementError, match=r"timed out after 0\.5 s"),
        time_limit(0.5, Progress("cpu")),
    ):
        engine.serve(requests((4, 500)), max_concurrency=1, sampling=GREEDY)
    assert time.monotonic() - start < 60


def _slow(forward):
    def slow(*given):
        time.sleep(0.2)
        return forward(*given)

    return slow


@needs_continuous_batching
def test_a_request_that_fails_is_told(engine, monkeypatch):
    """The error has its number; the other requests are stopped."""
    from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessorList

    def refuse(*_):
        raise ValueError("not this one\nand more")

    monkeypatch.setattr(ContinuousBatchingLogitsProcessorList, "check_kwargs", refuse)
    with pytest.raises(MeasurementError, match=r"^request 0 failed: not this one$"):
        engine.serve(requests((4, 3)), max_concurrency=1, sampling=GREEDY)


@needs_continuous_batching
def test_an_attention_that_cannot_be_served_is_one_line(model_cache):
    """The error suggests alternatives."""
    engine = TransformersEngine(load(ModelSpec("synthetic:tiny", "fp32", attention="flex_attention"), "cpu"))
    with pytest.raises(UsageError, match=r"cannot serve .*flex_attention with continuous batching: .*naive scheduler"):
        engine.serve(requests((4, 3)), max_concurrency=1, sampling=GREEDY)


@pytest.mark.parametrize("batching", [None, SimpleNamespace(block_size=256)], ids=["without", "early"])
def test_an_older_transformers_is_one_line(engine, monkeypatch, batching):
    """The error has the installed and required versions; the naive scheduler still works."""
    monkeypatch.setattr("transformers.ContinuousBatchingConfig", batching, raising=False)
    with pytest.raises(UsageError, match=r"transformers [\d.]+ has no usable continuous batching.* 5.19 or later"):
        engine.serve(requests((4, 3)), max_concurrency=1, sampling=GREEDY)
    assert engine.serve_one(requests((4, 3))[0], GREEDY).output_tokens == 3


@pytest.mark.skipif(SERVES, reason="the installed transformers has continuous batching")
def test_the_installed_transformers_is_too_old(engine):
    """Tested with the installed version."""
    with pytest.raises(UsageError, match=r"transformers [\d.]+ has no usable continuous batching.* 5.19 or later"):
        engine.serve(requests((4, 3)), max_concurrency=1, sampling=GREEDY)
