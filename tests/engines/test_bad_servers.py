"""Servers that refuse, stall, close early or send malformed data: one-line errors in bounded time, and no figures."""

from __future__ import annotations

import socket
import time
from dataclasses import replace

import pytest
from scripted_server import STREAM, TWO_TOKENS, event, json_answer, scripted, text, usage

from pytest_llmperf.engines import openai
from pytest_llmperf.engines.engine import EngineRequest, Sampling
from pytest_llmperf.engines.openai import OpenAIEngine
from pytest_llmperf.engines.openai_dialects import COMPLETIONS, request_formats
from pytest_llmperf.engines.sse import TimeLimits
from pytest_llmperf.errors import MeasurementError, ModelError, UsageError
from pytest_llmperf.measure.progress import Progress
from pytest_llmperf.measure.timeout import time_limit

QUICK = TimeLimits(connect_s=5, first_s=0.4, between_s=0.4)
CHUNKED = STREAM.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n")
REQUEST = EngineRequest(prompt=(1, 2, 3, 4), output_tokens=2)

BAD = {
    "stalls before its answer": ([60.0], r"completions: the server stalled after 0 events: check its log"),
    "stalls before its first event": ([STREAM, 60.0], r"stalled after 0 events"),
    "stalls between events": ([STREAM, text(" a"), 60.0], r"stalled after 1 events"),
    "keeps alive and says nothing": ([STREAM, *[b": ping\n\n", 0.1] * 600], r"stalled after 0 events"),
    "closes before its answer": ([], r"the connection broke after 0 events \(Server disconnected\)"),
    "closes inside a chunk": ([CHUNKED, b"ff\r\n" + text(" a")], r"the connection broke after 1 events"),
    "ends without usage": ([STREAM, text(" a"), text(" b")], r"ended after 2 events without usage"),
    "says nothing": ([STREAM], r"ended after 0 events without usage"),
    "sends no JSON": (
        [STREAM, event(b"{'text': \x1b[2J}")],
        r"malformed event {'text': \\x1b\[2J}: expected a JSON object",
    ),
    "sends JSON that is no object": ([STREAM, event([1, 2])], r"malformed event \[1, 2\]: "),
    "nests deeply": ([STREAM, event(b"[" * 50_000)], r"malformed event \[+\.\.\.: "),
    "fails inside the stream": (
        [STREAM, event({"error": {"message": "out of\nblocks"}})],
        r"the server failed: .*blocks",
    ),
    "produces fewer tokens": ([STREAM, text(" a"), usage(1)], r"1 output tokens, expected 2"),
    "produces more tokens": ([STREAM, text(" a"), usage(3)], r"3 output tokens, expected 2"),
    "shows no text": ([STREAM, usage(2)], r"reported 2 output tokens but sent no text"),
    "says choices are a number": (
        [STREAM, event({"choices": 7}), usage(2)],
        r"reported 2 output tokens but sent no text",
    ),
    "never ends": ([STREAM, *[text("x" * 60_000)] * 60], r"more than 196608 bytes for one request"),
    "does not stream": (json_answer({"choices": []}), r"content type application/json, expected text/event-stream"),
    "is no HTTP": ([b"SSH-2.0-OpenSSH_9.6\r\n"], r"the connection broke after 0 events"),
    "redirects": ([b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n"], r"HTTP 302"),
    "fails": (json_answer({"detail": "x" * 5000}, "500 Internal Server Error"), r"HTTP 500: {\"detail\": \"x+\.\.\.$"),
    "refuses every way": (json_answer({"error": "no"}, "400 Bad Request"), r"HTTP 400: {\"error\": \"no\"}$"),
    "wants a key": (json_answer({"error": "who?"}, "401 Unauthorized"), r"HTTP 401: .*who.*OPENAI_API_KEY"),
}


def limits_for(message):
    """Quick ones for a server that stalls; on a busy machine, any other may take its time."""
    return QUICK if "stalled" in message else TimeLimits()


@pytest.mark.parametrize(("script", "message"), BAD.values(), ids=BAD)
def test_a_server_that_does_it_when_it_is_tried(script, message, monkeypatch):
    """Creating the engine fails."""
    get = openai.get_json
    monkeypatch.setattr(openai, "get_json", lambda session, url, _limits: get(session, url, TimeLimits()))
    with scripted(script) as server, pytest.raises(MeasurementError, match=message) as caught:
        OpenAIEngine(server.url, limits=limits_for(message))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(("script", "message"), BAD.values(), ids=BAD)
def test_a_server_that_does_it_later(script, message):
    """The pass fails, its requests are cancelled, and the engine works again once the server does."""
    with scripted(TWO_TOKENS) as server:
        engine = OpenAIEngine(server.url)
        server.post, engine._limits = script, limits_for(message)
        with pytest.raises(MeasurementError, match=message):
            engine.serve([REQUEST, REQUEST, REQUEST], max_concurrency=2, sampling=Sampling())
        server.post, engine._limits = TWO_TOKENS, TimeLimits()
        assert engine.serve_one(REQUEST, Sampling()).output_tokens == 2
        engine.close()


def test_a_request_that_fails_ends_the_others():
    """A long stream does not delay the error."""
    start = time.monotonic()
    with scripted(TWO_TOKENS) as server:
        engine = OpenAIEngine(server.url, limits=TimeLimits(between_s=60))
        server.first = [[STREAM, text(" a"), 60.0]]
        server.post = json_answer({}, "500 Internal Server Error")
        with pytest.raises(MeasurementError, match="HTTP 500"):
            engine.serve([REQUEST, replace(REQUEST, arrival_s=0.2)], max_concurrency=2, sampling=Sampling())
        engine.close()
    assert time.monotonic() - start < 30


def test_a_time_limit_ends_what_is_under_way():
    """The signal interrupts the event loop; the stream is closed, and the engine can serve again."""
    with scripted(TWO_TOKENS) as server:
        engine = OpenAIEngine(server.url)
        server.first = [[STREAM, *[text(" a"), 0.05] * 100]]
        with pytest.raises(MeasurementError, match=r"timed out after 0.3 s"), time_limit(0.3, Progress("cpu")):
            engine.serve_one(REQUEST, Sampling())
        assert engine.serve_one(REQUEST, Sampling()).output_tokens == 2
        assert server.broken.wait(5)
        engine.close()


def test_no_server(unused_port):
    """The error suggests correcting the URL."""
    with pytest.raises(MeasurementError, match=r"cannot connect \(.*\): start the server, or correct --llm"):
        OpenAIEngine(f"http://127.0.0.1:{unused_port}/v1")


@pytest.fixture
def unused_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.mark.parametrize("listed", [[60.0], [b"HTTP/1.1 200 OK\r\n\r\n", 60.0]], ids=["no answer", "no body"])
def test_a_list_of_models_that_never_comes(listed):
    """Every HTTP call has a time limit."""
    start = time.monotonic()
    with (
        scripted(TWO_TOKENS, get=listed) as server,
        pytest.raises(MeasurementError, match=r"models: the server stalled"),
    ):
        OpenAIEngine(server.url, limits=QUICK)
    assert time.monotonic() - start < 30


@pytest.mark.parametrize(
    "listed",
    [
        json_answer({}, "500 Oops"),
        json_answer([1]),
        json_answer({"data": [3, {"id": 4}]}),
        [b"HTTP/1.1 200 OK\r\n\r\n<h"],
    ],
    ids=["fails", "a list", "no names", "no JSON"],
)
def test_a_server_that_does_not_list_its_models(listed):
    """The responses contain the model's name."""
    with scripted(TWO_TOKENS, get=listed) as server:
        engine = OpenAIEngine(server.url)
        assert engine.model["model"] == "m"
        engine.close()


def test_another_model_answers():
    """The requested model was not measured."""
    with scripted(TWO_TOKENS) as server, pytest.raises(ModelError, match=r"answers as model 'm', expected 'ORG/NAME'"):
        OpenAIEngine(server.url, model="ORG/NAME")


def test_one_of_several_models_must_be_chosen():
    """A guessed name would be recorded."""
    listed = json_answer({"data": [{"id": name} for name in ("a", "b", "c", "d\x1b")]})
    expected = r"the server has 4 models \(a, b, c and 1 more\): choose one with --llmperf-model"
    refusing = scripted(json_answer({}, "400 Bad Request"), get=listed)
    with refusing as server, pytest.raises(UsageError, match=expected):
        OpenAIEngine(server.url)


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:8000", "ftp://host/v1", "file:///etc/passwd", "http://", "http://host:99999", "http://host/v1?key=1",
     "http://me:secret@host/v1"],
)  # fmt: skip
def test_a_url_of_no_server(url):
    """The error does not repeat secrets."""
    with pytest.raises(
        UsageError, match=r"^--llmperf-base-url.*expected a URL like http://127.0.0.1:8000/v1"
    ) as caught:
        OpenAIEngine(url)
    assert "secret" not in str(caught.value)


def test_sampling_that_a_server_cannot_be_told_of():
    """The server would sample in another way."""
    with scripted(TWO_TOKENS) as server:
        engine = OpenAIEngine(server.url)
        engine._format = next(
            request_format
            for request_format in request_formats([COMPLETIONS], ids=False)
            if request_format.fixed_by == "max_tokens"
        )
        with pytest.raises(UsageError, match=r"top_k=5: neither OpenAI's protocol nor this server has top_k"):
            engine.serve_one(REQUEST, Sampling(temperature=1, top_k=5))
        engine.close()


def test_a_missing_package_is_named(monkeypatch):
    """With the command that installs it."""
    monkeypatch.setattr("pytest_llmperf.engines.openai.find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"openai needs aiohttp, .*: pip install 'pytest-llmperf\[serving\]'"):
        OpenAIEngine("http://127.0.0.1:1/v1")
