"""HTTP client for server-sent events (SSE), with the time at which each event arrived."""

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
_KEEP_ALIVE_S = 2.0  # servers close connections that are idle for 5 s, and a request sent at that moment would be lost


@dataclass(frozen=True, kw_only=True)
class TimeLimits:
    """Time limits for a server, in seconds."""

    connect_s: float = 10.0
    first_s: float = 600.0
    """Request to first event. A server that serves requests one by one makes the others wait."""
    between_s: float = 60.0
    """Between two events."""


class Refused(MeasurementError):  # noqa: N818  # named after what happened, like KeyboardInterrupt
    """The server answered with a status other than 200."""

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
    """Open an aiohttp session without proxies, cookies or compression. Requires a running event loop.

    aiohttp uses the least CPU time per event of the clients tried: 26 µs at 16 streams; httpx 113, httpx2 121, and
    openai's own client 210.

    Args:
        limits: time limits for the server.
        headers: headers of every request.
        reuse: whether to keep connections alive: a server may close one after a failed request.
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
    """GET a JSON document; ``None`` if the body is not JSON or too long.

    Raises:
        Refused: the status is not 200.
        MeasurementError: the server is unreachable, or does not answer in time.
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
    """POST a request and read all events of the answer; parsing waits until the stream has ended.

    Raises:
        Refused: the status is not 200.
        MeasurementError: the server is unreachable, stalls, closes early, sends more than ``most_bytes``, or sends
            events that are not JSON objects.
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
    """The part of a stream received so far."""

    url: str
    most_bytes: int
    lines: list[tuple[float, bytes]] = field(default_factory=list)
    size: int = 0
    _rest: bytes = b""

    def add(self, moment_s: float, data: bytes) -> bool:
        """Add the data of one read; return whether it completed an event. OpenAI's events are one data line each."""
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
async def _failures_named(url: str, received: object = "before any response") -> AsyncIterator[None]:
    """Turn connection errors into a one-line MeasurementError."""
    import aiohttp

    try:
        yield
    except aiohttp.ClientConnectorError as error:
        refused = isinstance(error.os_error, ConnectionRefusedError)
        reason = "connection refused" if refused else quote(error.os_error.strerror or str(error.os_error))
        raise MeasurementError(
            f"{url}: cannot connect ({reason}): start the server, or correct --llmperf-base-url"
        ) from error
    except aiohttp.ServerTimeoutError as error:
        raise MeasurementError(
            f"{url}: connecting timed out: start the server, or correct --llmperf-base-url"
        ) from error
    except TimeoutError as error:
        raise MeasurementError(f"{url}: the server stalled {received}: check its log") from error
    except (aiohttp.ClientError, OSError) as error:
        reason = quote(str(error) or type(error).__name__)
        raise MeasurementError(f"{url}: the connection broke {received} ({reason}): check the server's log") from error


async def _check_status(response: ClientResponse, url: str) -> None:
    if response.status != _OK:
        body = (await _read(response, _LONGEST_BODY)).decode(errors="replace")
        hint = "; is OPENAI_API_KEY set?" if response.status in _NOT_ALLOWED else ""
        raise Refused(f"{url}: HTTP {response.status}: {quote(body) or 'no reason given'}{hint}", response.status)


def _check_type(response: ClientResponse, url: str) -> None:
    if response.content_type != "text/event-stream":
        raise MeasurementError(
            f"{url}: content type {quote(response.content_type)}, expected text/event-stream: "
            "the server does not stream"
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
    """Text from a server, as one printable line of bounded length."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= _LONGEST_QUOTE else f"{line[:_LONGEST_QUOTE]}..."
