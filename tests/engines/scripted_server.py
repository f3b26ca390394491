"""A server that sends the bytes a test has scripted, for behaviour that no real server shows on request."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

Script = Sequence[bytes | float]
"""What is sent; a number is a wait in seconds. The connection is closed at its end."""

STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"


def json_answer(body: object, status: str = "200 OK") -> Script:
    return [f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n\r\n{json.dumps(body)}".encode()]


def event(data: object) -> bytes:
    return b"data: " + (data if isinstance(data, bytes) else json.dumps(data).encode()) + b"\n\n"


def text(words: str, **more: object) -> bytes:
    return event({"model": "m", "choices": [{"index": 0, "text": words}], **more})


def usage(output: int, prompt: int = 4, cached: int | None = None) -> bytes:
    details = {} if cached is None else {"prompt_tokens_details": {"cached_tokens": cached}}
    counts = {"prompt_tokens": prompt, "completion_tokens": output, **details}
    return event({"model": "m", "choices": [], "usage": counts})


TWO_TOKENS: Script = [STREAM, text(" a"), 0.01, text(" b"), usage(2), event(b"[DONE]")]
MODELS = json_answer({"data": [{"id": "m", "max_model_len": 64}]})


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    get: Script
    post: Script

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.stopped = threading.Event()
        self.broken = threading.Event()
        """Set once a client has gone before its answer's end."""
        self.first: list[Script] = []
        """Each answers one POST, before the others are answered by ``post``."""
        self.asked: list[tuple[str, dict[str, str], dict[str, object]]] = []
        """Path, headers and body of each POST."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(socketserver.StreamRequestHandler):
    server: _Server

    def handle(self) -> None:
        method, path, _ = self.rfile.readline().decode().split()
        headers = {}
        while line := self.rfile.readline().decode().strip():
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        body = json.loads(self.rfile.read(int(headers.get("content-length", 0))) or "null")
        if method == "POST":
            self.server.asked.append((path, headers, body))
        script = self.server.get
        if method == "POST":
            script = self.server.first.pop(0) if self.server.first else self.server.post
        try:
            for step in script:
                if isinstance(step, bytes):
                    self.wfile.write(step)
                else:
                    self.server.stopped.wait(step)
        except ConnectionError:
            self.server.broken.set()


@contextmanager
def scripted(post: Script, get: Script = MODELS) -> Iterator[_Server]:
    """Start a server on loopback; ``post`` may be changed while it runs."""
    with _Server() as server:
        server.get, server.post = get, post
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.stopped.set()
            server.shutdown()
            thread.join()
