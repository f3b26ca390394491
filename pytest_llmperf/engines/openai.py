"""Client for OpenAI-compatible servers, using streamed completions or chat completions."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Mapping, Sequence
from importlib.util import find_spec
from itertools import pairwise
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from pytest_llmperf.engines.engine import EngineRequest, EngineResponse, Sampling
from pytest_llmperf.engines.openai_dialects import LETTERS, RequestFormat, check_base_url, request_formats
from pytest_llmperf.engines.openai_model import ServedModel, check_model
from pytest_llmperf.engines.sse import Refused, ServerSentEvent, TimeLimits, get_json, open_session, post_events
from pytest_llmperf.errors import MeasurementError, MissingDependency
from pytest_llmperf.metrics import Scalar

if TYPE_CHECKING:
    from aiohttp import ClientSession

_NO_SUCH_PATH = (404, 405)
_WRONG_FORMAT = (*_NO_SUCH_PATH, 400, 422)
_MOST_BYTES_A_TOKEN = 2**16
_PROBE = EngineRequest(prompt=(5, 6, 7, 8), output_tokens=2)

_Found = TypeVar("_Found")


class Usage(NamedTuple):
    """A server's token counts of one request."""

    input_tokens: int
    output_tokens: int
    cached_tokens: int | None
    """Of the input tokens; ``None`` if the server does not report them."""


class OpenAIEngine:
    """Serves requests by sending them to a server.

    Creating the engine probes the server: whether it accepts token ids, and how to request a fixed number of tokens.
    ``OPENAI_API_KEY`` is sent if set, and never stored.

    Args:
        base_url: such as ``http://127.0.0.1:8000/v1``. If it ends in ``/chat/completions``, chat completions are used;
            otherwise completions, or chat completions if the server has no completions.
        model: the model that the server should serve; ``None`` accepts any.
        limits: time limits for the server.

    Raises:
        UsageError: the URL is invalid, or the server serves several models and none was chosen.
        MissingDependency: aiohttp is not installed.
        ModelError: the server serves another model.
        MeasurementError: the server is unreachable, or its responses cannot be measured.
    """

    name = "openai"
    device = None

    def __init__(self, base_url: str, *, model: str | None = None, limits: TimeLimits | None = None) -> None:
        check_server(base_url, model)
        self._url, paths = check_base_url(base_url)
        self._limits = limits or TimeLimits()
        self._served = ServedModel(model)
        self._session: ClientSession | None = None
        self._runner = asyncio.Runner()
        try:
            self._format = self._run(self._settled(paths))
        except BaseException:
            self.close()
            raise

    @property
    def model(self) -> Mapping[str, str | None]:
        """The model's name as reported by the server, and its revision if reported."""
        untold = dict.fromkeys(("quantization", "dtype", "attention"))
        return {"model": self._served.shown, "revision": self._served.revision, **untold}

    @property
    def settings(self) -> Mapping[str, Scalar]:
        """How requests are sent."""
        return {"endpoint": self._format.path, "prompt": self._format.prompt, "fixed_by": self._format.fixed_by}

    @property
    def vocabulary(self) -> int:
        """The model's vocabulary size if ids are sent; else the number of letters in text prompts."""
        known = self._served.vocabulary
        return known if self._format.prompt == "ids" and known else len(LETTERS)

    @property
    def longest(self) -> int | None:
        """The limit that the server lists."""
        return self._served.longest

    def serve_one(self, request: EngineRequest, sampling: Sampling) -> EngineResponse:
        """Send a single request."""
        return self.serve([request], max_concurrency=1, sampling=sampling)[0]

    def serve(
        self, requests: Sequence[EngineRequest], *, max_concurrency: int, sampling: Sampling
    ) -> list[EngineResponse]:
        """Send each request at its arrival, with at most ``max_concurrency`` in flight.

        Raises:
            UsageError: the server does not support this sampling.
            MeasurementError: a request failed or produced another number of tokens; the others are cancelled.
        """
        return self._run(self._serve(requests, max_concurrency, sampling))

    def release(self) -> None:
        """Do nothing: no state is specific to a measurement."""

    def close(self) -> None:
        """Close the connections."""
        self._run(self._drop())
        self._runner.close()

    def _run(self, coroutine: Coroutine[Any, Any, _Found]) -> _Found:
        """Run a coroutine; on failure cancel all requests, because a time limit interrupts only the event loop."""
        try:
            return self._runner.run(coroutine)
        except BaseException:
            self._runner.run(self._drop())
            raise

    async def _drop(self) -> None:
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _open(self, *, reuse: bool) -> ClientSession:
        key = os.environ.get("OPENAI_API_KEY", "")
        return open_session(self._limits, {"Authorization": f"Bearer {key}"} if key else {}, reuse=reuse)

    async def _settled(self, paths: Sequence[str]) -> RequestFormat:
        """Probe the server for the first request format that it accepts."""
        async with self._open(reuse=False) as session:
            self._served.choose(await self._listed(session))
            refusals = []
            for request_format in request_formats(paths, ids=self._served.vocabulary is not None):
                try:
                    await self._send(session, request_format, _PROBE, Sampling(), 0.0)
                except Refused as error:
                    if error.status not in _WRONG_FORMAT:
                        raise
                    refusals.append(error)
                else:
                    return request_format
        raise self._served.explained(max(reversed(refusals), key=lambda error: error.status not in _NO_SUCH_PATH))

    async def _listed(self, session: ClientSession) -> Any:
        try:
            return await get_json(session, f"{self._url}/models", self._limits)
        except Refused:  # some servers have no list of models
            return None

    async def _serve(
        self, requests: Sequence[EngineRequest], max_concurrency: int, sampling: Sampling
    ) -> list[EngineResponse]:
        session = self._session = self._session or self._open(reuse=True)
        start_s, room = perf_counter(), asyncio.Semaphore(max_concurrency)

        async def one(request: EngineRequest) -> EngineResponse:
            await asyncio.sleep(max(0.0, start_s + request.arrival_s - perf_counter()))
            async with room:
                return await self._send(session, self._format, request, sampling, start_s)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(request)) for request in requests]
        except ExceptionGroup as failures:  # the first failure cancelled the other tasks
            raise failures.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _send(
        self,
        session: ClientSession,
        request_format: RequestFormat,
        request: EngineRequest,
        sampling: Sampling,
        start_s: float,
    ) -> EngineResponse:
        url, body = self._url + request_format.path, request_format.body(request, sampling) | self._served.named
        sent_s = perf_counter()
        events = await post_events(
            session, url, body, self._limits, most_bytes=_MOST_BYTES_A_TOKEN * (request.output_tokens + 1)
        )
        self._served.check(events)
        usage = _check_usage(events, request, request_format, url)
        return _response(events, request, usage, sent_s=sent_s, start_s=start_s)


def check_server(base_url: str, model: str | None) -> None:
    """Check a server's URL and model without connecting.

    Raises:
        UsageError: the URL is invalid, or the synthetic model is unknown.
        MissingDependency: aiohttp is not installed.
    """
    check_base_url(base_url)
    check_model(model)
    if find_spec("aiohttp") is None:
        raise MissingDependency("aiohttp", extra="serving", purpose="--llmperf-engine openai")


def _check_usage(
    events: Sequence[ServerSentEvent], request: EngineRequest, request_format: RequestFormat, url: str
) -> Usage:
    """Token counts, as reported by the server.

    Raises:
        MeasurementError: the stream has no usage, impossible or other token counts than requested, or no text.
    """
    found = next((usage for event in reversed(events) if (usage := _usage(event))), None)
    if found is None:
        raise MeasurementError(
            f"{url}: the stream ended after {len(events)} events without usage; expected usage, which has the "
            "token counts"
        )
    input_tokens, output_tokens, cached_tokens = found
    if output_tokens != request.output_tokens:
        raise MeasurementError(
            f"{url}: {output_tokens} output tokens, expected {request.output_tokens}: other lengths are not comparable"
        )
    if request_format.prompt == "ids" and input_tokens != len(request.prompt):
        raise MeasurementError(f"{url}: the server counts {input_tokens} prompt tokens, expected {len(request.prompt)}")
    if cached_tokens is not None and not 0 <= cached_tokens <= input_tokens:
        raise MeasurementError(
            f"{url}: the server counts {cached_tokens} cached tokens, expected 0 to the {input_tokens} prompt tokens"
        )
    if not any(map(_has_text, events)):
        raise MeasurementError(
            f"{url}: the server reported {output_tokens} output tokens but sent no text; expected text to time them by"
        )
    return found


def _response(
    events: Sequence[ServerSentEvent], request: EngineRequest, usage: Usage, *, sent_s: float, start_s: float
) -> EngineResponse:
    """Build a response; its times are those of events that carry text."""
    moments = [event.moment_s - start_s for event in events if _has_text(event)]
    gaps = tuple(after - before for before, after in pairwise(moments))
    one_by_one = len(moments) == request.output_tokens and all(gaps)  # events received in one read have the same time
    return EngineResponse(
        sent_s=sent_s - start_s,
        first_s=moments[0],
        last_s=moments[-1],
        input_tokens=usage.input_tokens,
        output_tokens=request.output_tokens,
        gaps_s=gaps if one_by_one else None,
        cached_tokens=usage.cached_tokens,
    )


def _has_text(event: ServerSentEvent) -> bool:
    """Whether an event carries text of a completion or a chat completion."""
    choices = event.data.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    part = choice.get("delta", choice) if isinstance(choice, dict) else None
    names = ("text", "content", "reasoning_content", "reasoning")
    return isinstance(part, dict) and any(part.get(name) for name in names)


def _usage(event: ServerSentEvent) -> Usage | None:
    """Token counts, if the event reports usage."""
    usage = event.data.get("usage")
    if not isinstance(usage, dict):
        return None
    prompt, output = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if not isinstance(prompt, int) or not isinstance(output, int):
        return None
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    return Usage(prompt, output, cached if isinstance(cached, int) else None)
