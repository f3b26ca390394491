"""The openai engine with ``transformers serve``, and with scripted servers."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import pytest
from packaging.version import Version
from real_server import real_server
from scripted_server import STREAM, TWO_TOKENS, event, json_answer, scripted, text, usage

from pytest_llmperf.engines.engine import EngineRequest, Sampling
from pytest_llmperf.engines.openai import OpenAIEngine
from pytest_llmperf.errors import MeasurementError
from pytest_llmperf.models.synthetic import model_folder, prepare
from pytest_llmperf.storage.baseline_file import load_baseline

REQUEST = EngineRequest(prompt=(1, 2, 3, 4), output_tokens=2)


@pytest.fixture(scope="session")
def served(model_cache, tmp_path_factory):
    """The URL of ``transformers serve`` with the tiny model."""
    pytest.importorskip("fastapi", reason="transformers[serving] is not installed")
    if Version(version("transformers")) < Version("5"):
        pytest.skip("transformers serve takes no model before version 5")
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(prepare("synthetic:tiny"))]
    log = tmp_path_factory.mktemp("serve") / "log"
    with real_server([*command, "--device", "cpu"], log) as url:
        yield url


@pytest.fixture
def tiny(served):
    engine = OpenAIEngine(served, model="synthetic:tiny")
    yield engine
    engine.close()


def test_what_a_real_server_is_found_to_take(tiny):
    """It takes text only, and fixes the length by ``generation_config``."""
    assert tiny.settings == {"endpoint": "/completions", "prompt": "text", "fixed_by": "generation_config"}
    assert tiny.model == {
        "model": "synthetic:tiny", "revision": tiny.model["revision"], "quantization": None, "dtype": None,
        "attention": None,
    }  # fmt: skip
    assert tiny.model["revision"] in ("main", None), "transformers 5.24 tells none"
    assert tiny.vocabulary == 26


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.8, top_k=20, top_p=0.9)], ids=str)
def test_requests_of_a_real_server(tiny, sampling):
    """Token counts, order of times, and at most one request at once where only one is allowed."""
    requests = [
        EngineRequest(prompt=tuple(range(length)), output_tokens=length, arrival_s=0.02) for length in (8, 3, 5)
    ]
    responses = tiny.serve(requests, max_concurrency=1, sampling=sampling)
    assert [(response.input_tokens, response.output_tokens) for response in responses] == [(8, 8), (3, 3), (5, 5)]
    for response in responses:
        assert 0.02 <= response.sent_s < response.first_s <= response.last_s
        assert response.gaps_s is None or sum(response.gaps_s) == pytest.approx(response.last_s - response.first_s)
    in_time = sorted(responses, key=lambda response: response.sent_s)
    assert all(one.last_s <= other.sent_s for one, other in pairwise(in_time))


def test_chats_of_a_real_server(served):
    """Input tokens include the template's; the event with the role is no token."""
    engine = OpenAIEngine(f"{served}/chat/completions")
    response = engine.serve_one(EngineRequest(prompt=(1, 2, 3), output_tokens=4), Sampling())
    assert engine.settings["endpoint"] == "/chat/completions"
    assert (response.input_tokens > 3, response.output_tokens) == (True, 4)
    engine.close()


def test_another_model_than_a_real_server_has(served):
    """The server's message names its model."""
    with pytest.raises(MeasurementError, match=r"HTTP 400: .*pinned to '.*tiny.*requested '.*32m"):
        OpenAIEngine(served, model="synthetic:32m")


def test_ids_are_sent_where_the_vocabulary_is_known():
    """The body has exact ids, ignores EOS and avoids prefix cache hits."""
    name = f"/elsewhere/{model_folder('synthetic:tiny').name}"
    with scripted(TWO_TOKENS, get=json_answer({"data": [{"id": name, "max_model_len": 64}]})) as server:
        server.post = [step.replace(b'"m"', json.dumps(name).encode()) if step != 0.01 else step for step in TWO_TOKENS]
        engine = OpenAIEngine(server.url, model="synthetic:tiny")
        engine.serve([REQUEST, REQUEST], max_concurrency=2, sampling=Sampling(temperature=0.5, top_k=3))
        bodies = [body for _, _, body in server.asked[1:]]
        engine.close()
    assert (engine.vocabulary, engine.longest, engine.model["model"]) == (512, 64, "synthetic:tiny")
    salts = {body.pop("cache_salt") for body in bodies}
    assert len(salts) == 2
    assert bodies == 2 * [
        {"model": name, "prompt": [1, 2, 3, 4], "max_tokens": 2, "min_tokens": 2, "ignore_eos": True, "stream": True,
         "stream_options": {"include_usage": True}, "temperature": 0.5, "top_k": 3}
    ]  # fmt: skip


def test_prompts_with_a_shared_prefix_have_no_salt():
    """A salt would keep them from the server's prefix cache."""
    name = f"/elsewhere/{model_folder('synthetic:tiny').name}"
    with scripted(TWO_TOKENS, get=json_answer({"data": [{"id": name, "max_model_len": 64}]})) as server:
        server.post = [step.replace(b'"m"', json.dumps(name).encode()) if step != 0.01 else step for step in TWO_TOKENS]
        engine = OpenAIEngine(server.url, model="synthetic:tiny")
        engine.serve_one(EngineRequest(prompt=(1, 2, 3, 4), output_tokens=2, shared_prefix=3), Sampling())
        engine.close()
    assert "cache_salt" not in server.asked[-1][2]


def test_cached_tokens_are_as_the_server_reports_them():
    """A server that reports none has none that are known, and an impossible count is refused."""
    with scripted(TWO_TOKENS) as server:
        engine = OpenAIEngine(server.url)
        found = []
        for cached in (None, 0, 3):
            server.post = [STREAM, text(" a"), 0.01, text(" b"), usage(2, cached=cached)]
            found.append(engine.serve_one(REQUEST, Sampling()).cached_tokens)
        server.post = [STREAM, text(" a"), 0.01, text(" b"), usage(2, cached=5)]
        with pytest.raises(MeasurementError, match="counts 5 cached tokens, expected 0 to the 4 prompt tokens"):
            engine.serve_one(REQUEST, Sampling())
        engine.close()
    assert found == [None, 0, 3]


SHARED_TEST = """
def test_shared(engine, llmperf):
    shape = {"requests": 4, "input_tokens": 8, "output_tokens": 2, "repeats": 2, "shared_prefix": 4}
    llmperf.serve(engine, scheduler="naive", **shape)
"""


def serve_shared(project, server):
    """The one result of a run that serves `SHARED_TEST`."""
    project.write(SHARED_TEST, conftest="")
    engine = ("--llmperf-engine=openai", f"--llmperf-base-url={server.url}", "--llmperf-model=m")
    result = project.run(*engine, "--llmperf-measure-only", "--llmperf-json=out")
    assert result.ret == 0, result.outlines
    (entry,) = (json.loads(path.read_text()) for path in (project.path / "out").glob("*.json"))
    (found,) = entry["results"]
    (cell,) = (cell for cell in found["cells"] if cell["metric"] == "prefix_hit_share")
    return found["workload"], cell


def test_the_hit_rate_of_a_shared_prefix(project):
    """Half of each prompt is shared; the server finds a quarter, and omits the count where it finds nothing."""
    missed, hit = ([STREAM, text(" a"), 0.01, text(" b"), usage(2, prompt=8, cached=cached)] for cached in (None, 4))
    with scripted(missed) as server:
        server.first = [TWO_TOKENS, *100 * [missed, hit]]  # the first answers the probe
        workload, cell = serve_shared(project, server)
        prompts = [tuple(body["prompt"].split()) for _, _, body in server.asked[1:]]
    assert cell["value"] == 0.25
    assert workload["settings"]["shared_prefix"] == 4
    assert len({prompt[:4] for prompt in prompts}) == 1
    assert len(set(prompts)) == len(prompts) >= 12


def test_a_hit_rate_that_nobody_reports(project):
    """It is unknown, with the reason, and never 0."""
    with scripted([STREAM, text(" a"), 0.01, text(" b"), usage(2, prompt=8)]) as server:
        server.first = [TWO_TOKENS]
        _, cell = serve_shared(project, server)
    assert cell["value"] is None
    assert cell["reason"].startswith("the engine reported no cached prompt tokens (vLLM's server does with --enable-")


def test_a_server_that_counts_other_ids():
    """A server that truncates or extends the prompt is refused."""
    expected = r"the server counts 5 prompt tokens, expected 4"
    unnamed = event({"choices": [{"text": "a"}]})
    script = [STREAM, unnamed, event({"usage": {"prompt_tokens": 5, "completion_tokens": 2}})]
    with scripted(script) as server, pytest.raises(MeasurementError, match=expected):
        OpenAIEngine(server.url, model="synthetic:tiny")


def test_gaps_are_told_where_tokens_came_one_by_one():
    """Events received in one read, or with several tokens, have no gaps."""
    scripts = {
        "one by one": [STREAM, text(" a"), 0.05, text(" b"), usage(2)],
        "in one read": [STREAM, text(" a") + text(" b"), usage(2)],
        "in one event": [STREAM, text(" a b"), usage(2)],
    }
    with scripted(TWO_TOKENS) as server:
        engine = OpenAIEngine(server.url)
        found = {}
        for name, server.post in scripts.items():
            found[name] = engine.serve_one(REQUEST, Sampling()).gaps_s
        engine.close()
    assert found["one by one"][0] == pytest.approx(0.05, abs=0.04)
    assert found["in one read"] is found["in one event"] is None


def test_a_server_without_completions_is_asked_for_chats():
    """The event with the role is no token."""
    role, word = ({"model": "m", "choices": [{"delta": delta}]} for delta in ({"role": "assistant"}, {"content": "a"}))
    with scripted([STREAM, event(role), 0.02, event(word), 0.02, event(word), usage(2)]) as server:
        server.first = 3 * [json_answer({}, "404 Not Found")]
        engine = OpenAIEngine(server.url)
        response = engine.serve_one(REQUEST, Sampling())
        body = server.asked[-1][2]
        engine.close()
    assert engine.settings == {"endpoint": "/chat/completions", "prompt": "text", "fixed_by": "ignore_eos"}
    assert body["messages"] == [{"role": "user", "content": " b c d e"}]
    assert len(response.gaps_s) == 1


def test_the_key_is_sent_and_kept_nowhere(monkeypatch):
    """It comes from the environment only."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    with scripted(TWO_TOKENS) as server:
        engine = OpenAIEngine(server.url)
        assert server.asked[0][1]["authorization"] == "Bearer sk-very-secret"
        server.post = json_answer({}, "500 Oops")
        with pytest.raises(MeasurementError) as caught:
            engine.serve_one(REQUEST, Sampling())
        engine.close()
    assert "secret" not in f"{caught.value} {engine.settings} {engine.model}"


def test_late_requests_tell_when_they_were_sent():
    """Arrival times are kept; a request over the concurrency limit is sent later."""
    with scripted([STREAM, 0.1, text(" a"), 0.01, text(" b"), usage(2)]) as server:
        engine = OpenAIEngine(server.url)
        requests = [EngineRequest(prompt=(1,), output_tokens=2, arrival_s=moment) for moment in (0.0, 0.01, 0.02)]
        first, second, third = engine.serve(requests, max_concurrency=2, sampling=Sampling())
        engine.close()
    assert first.sent_s < 0.01 <= second.sent_s < first.last_s
    assert third.sent_s >= first.last_s


SERVING_TEST = """
def test_schedulers(engine, llmperf):
    shape = {"requests": 3, "max_batch_size": 2, "input_tokens": (4, 8), "output_tokens": (2, 6), "repeats": 1}
    naive = llmperf.serve(engine, scheduler="naive", **shape)
    online = llmperf.serve(engine, scheduler="online", rate=200.0, **shape)
    llmperf.speedup(online, over=naive)
    assert online.workload.settings["prompt"] == "text"
"""


def test_a_real_server_by_the_command_line(project, served):
    """Figures are recorded with the server's settings, and judged like others."""
    project.write(SERVING_TEST, conftest="")
    options = ("--llmperf-engine=openai", f"--llmperf-base-url={served}", "--llmperf-update")
    result = project.run(*options)
    assert result.ret == 0, result.outlines
    result.stdout.fnmatch_lines(["test_schedulers* tokens/s *new", "test_schedulers* tokens/s *new", "test_sch*×*new"])
    recorded = load_baseline(project.baseline())
    served_by = {(workload.engine, workload.model) for workload in recorded.workloads.values()}
    assert served_by == {("openai", "synthetic:tiny")}
    again = project.run(*options[:2], "--llmperf-gate=none")
    again.stdout.no_fnmatch_line("*new:*")


def test_a_server_that_fails_is_an_error_of_its_test(project):
    """It is one line, and nothing is recorded."""
    with scripted(TWO_TOKENS) as server:
        project.write("def test_it(engine, llmperf): llmperf.serve(engine, requests=2, output_tokens=3)", conftest="")
        result = project.run("--llmperf-engine=openai", f"--llmperf-base-url={server.url}", "--llmperf-model=m")
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        ["E * http://127.0.0.1:*: 2 output tokens, expected 3: other lengths are not comparable"]
    )
    assert not (project.path / "baselines").exists()


def test_a_server_that_is_not_there_is_one_line(project):
    """Without a traceback."""
    project.write("def test_it(engine, llmperf): llmperf.serve(engine)", conftest="")
    result = project.run("--llmperf-engine=openai", "--llmperf-base-url=http://127.0.0.1:1/v1")
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        ["http://127.0.0.1:1/v1/models: cannot connect (connection refused): start the server*"]
    )
    assert "The above exception" not in result.stdout.str()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--llmperf-engine=openai"], "--llmperf-engine openai needs a server: pass --llmperf-base-url *"),
        (
            ["--llmperf-engine=openai", "--llmperf-base-url=ftp://x"],
            "--llmperf-base-url 'ftp://x': expected a URL like *",
        ),
        (
            ["--llmperf-engine=openai", "--llmperf-base-url=http://x", "--llmperf-revision=main"],
            "*leave the option out",
        ),
        (["--llmperf-engine=openai", "--llmperf-base-url=http://x", "--llmperf-model=synthetic:2b"], "*synthetic:2b*"),
        (
            ["--llmperf-engine=vllm", "--llmperf-base-url=http://x"],
            "*vllm engine runs in this process; for a vllm server, use *openai",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_no_engine_can_be_made_of(project, arguments, line):
    """Wrong options are refused before anything is sent or measured."""
    project.write("def test_it(engine, llmperf): llmperf.serve(engine)", conftest="")
    result = project.run(*arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {line}"])
