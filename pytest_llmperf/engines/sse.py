"""Streaming answers over HTTP: what a server sent, and when each event of it was here."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_llmperf.errors import MeasurementError
from pytest_llmperf.text import printable

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientSession

_OK, _NOT_ALLOWED = 200, (401, 403)
_LONGEST_BODY = 64 * 2**10
_LONGEST_QUOTE = 200
_KEEP_ALIVE_S = 2.0  # servers close what is idle for 5 s, and a request sent in that moment would be lost


@dataclass(frozen=True, kw_only=True)
class TimeLimits:
    """How long a server may take, in seconds."""

    connect_s: float = 10.0
    first_s: float = 600.0
    """Request in to first event: a server that serves one after another lets the others wait."""
    between_s: float = 60.0
    """From one event to the next."""


class Refused(MeasurementError):  # noqa: N818  # says what happened, as KeyboardInterrupt does
    """A status other than 200."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class ServerSentEvent:
    """One event of a stream."""

    moment_s: float
    """When the read that completed it returned, by ``time.perf_counter``."""
    data: Mapping[str, Any]


def open_session(limits: TimeLimits, headers: Mapping[str, str], *, reuse: bool) -> ClientSession:
    """Connections without proxies, cookies or compression. Called where an event loop runs.

    aiohttp takes the least processor time an event of those tried: 26 µs at 16 streams, httpx 113, httpx2 121, and
    openai's own client 210.

    Args:
        limits: how long a server may take.
        headers: of every request.
        reuse: whether a connection is kept for the next request: a server may close one after a request that failed.
    """
    import aiohttp

    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=0, force_close=not reuse, keepalive_timeout=_KEEP_ALIVE_S if reuse else None
        ),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=limits.connect_s),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"Accept-Encoding": "identity", **headers},
    )


async def get_json(session: ClientSession, url: str, limits: TimeLimits) -> Any:
    """What a server answers at once; ``None`` if that is no JSON or too long.

    Raises:
        Refused: with another status than 200.
        MeasurementError: it cannot be reached, or does not answer in time.
    """
    async with (
        _failures_named(url),
        asyncio.timeout(limits.between_s),
        session.get(url, allow_redirects=False) as response,
    ):
        await _check_status(response, url)
        body = await _read(response, _LONGEST_BODY)
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


async def post_events(
    session: ClientSession, url: str, body: Mapping[str, Any], limits: TimeLimits, *, most_bytes: int
) -> list[ServerSentEvent]:
    """Ask, and read the events of the answer to their end. Whatever costs time waits until then.

    Raises:
        Refused: with another status than 200.
        MeasurementError: it cannot be reached, stalls, closes early, sends more than ``most_bytes``, or something else
            than events of JSON objects.
    """
    received = _Received(url, most_bytes)
    async with (
        _failures_named(url, received),
        asyncio.timeout(limits.first_s) as limit,
        session.post(url, json=body, allow_redirects=False) as response,
    ):
        await _check_status(response, url)
        _check_type(response, url)
        async for data in response.content.iter_any():
            if received.add(time.perf_counter(), data):
                limit.reschedule(asyncio.get_running_loop().time() + limits.between_s)
    return [ServerSentEvent(moment, _parsed(line, url)) for moment, line in received.lines if line != b"[DONE]"]


@dataclass
class _Received:
    """What has come of a stream so far."""

    url: str
    most_bytes: int
    lines: list[tuple[float, bytes]] = field(default_factory=list)
    size: int = 0
    _rest: bytes = b""

    def add(self, moment_s: float, data: bytes) -> bool:
        """Keep what one read gave; whether it completed an event. OpenAI's events are a line of data each."""
        self.size += len(data)
        if self.size > self.most_bytes:
            raise MeasurementError(f"{self.url}: more than {self.most_bytes} bytes for one request; expected fewer")
        *lines, self._rest = (self._rest + data).split(b"\n")
        found = [(moment_s, line[5:].strip()) for line in lines if line.startswith(b"data:")]
        self.lines += found
        return bool(found)

    def __str__(self) -> str:
        return f"after {len(self.lines)} events"


@asynccontextmanager
async def _failures_named(url: str, received: object = "before any answer") -> AsyncIterator[None]:
    """Whatever a connection can come to becomes one line."""
    import aiohttp

    try:
        yield
    except aiohttp.ClientConnectorError as error:
        refused = isinstance(error.os_error, ConnectionRefusedError)
        reason = "connection refused" if refused else quote(error.os_error.strerror or str(error.os_error))
        raise MeasurementError(
            f"{url}: cannot connect ({reason}): expected a server there; start it, or mend --llmperf-base-url"
        ) from error
    except aiohttp.ServerTimeoutError as error:
        raise MeasurementError(f"{url}: no connection in time: start the server, or mend --llmperf-base-url") from error
    except TimeoutError as error:
        raise MeasurementError(f"{url}: the server stalled {received}: look into its log") from error
    except (aiohttp.ClientError, OSError) as error:
        reason = quote(str(error) or type(error).__name__)
        raise MeasurementError(
            f"{url}: the connection broke {received} ({reason}): look into the server's log"
        ) from error


async def _check_status(response: ClientResponse, url: str) -> None:
    if response.status != _OK:
        body = (await _read(response, _LONGEST_BODY)).decode(errors="replace")
        hint = "; is OPENAI_API_KEY set?" if response.status in _NOT_ALLOWED else ""
        raise Refused(f"{url}: HTTP {response.status}: {quote(body) or 'no reason given'}{hint}", response.status)


def _check_type(response: ClientResponse, url: str) -> None:
    if response.content_type != "text/event-stream":
        raise MeasurementError(
            f"{url}: content type {quote(response.content_type)}, expected text/event-stream: it does not stream"
        )


async def _read(response: ClientResponse, most_bytes: int) -> bytes:
    found = b""
    async for data in response.content.iter_any():
        found += data
        if len(found) > most_bytes:
            break
    return found[:most_bytes]


def _parsed(line: bytes, url: str) -> Mapping[str, Any]:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise MeasurementError(f"{url}: malformed event {quote(line.decode(errors='replace'))}: expected a JSON object")
    if error := data.get("error"):
        raise MeasurementError(
            f"{url}: the server failed: {quote(error if isinstance(error, str) else json.dumps(error))}"
        )
    return data


def quote(text: str) -> str:
    """What a server said, in one printable line of bounded length."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= _LONGEST_QUOTE else f"{line[:_LONGEST_QUOTE]}..."
