"""Real servers with OpenAI's protocol on loopback, started as a user starts them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

START_S = 240.0
STOP_S = 20.0


@contextmanager
def real_server(command: Sequence[str], log: Path, **environment: str) -> Iterator[str]:
    """Yield the base URL of ``command --host HOST --port PORT`` once /health answers; end the server afterwards."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    listening = [*command, "--host", "127.0.0.1", "--port", str(port)]
    with running(listening, log, ready=lambda: _is_healthy(url), env={**os.environ, **environment}):
        yield f"{url}/v1"


def free_port() -> int:
    """Return a port on which no process listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextmanager
def running(command: Sequence[str], log: Path, *, ready: Callable[[], bool], **how: Any) -> Iterator[None]:
    """Run a server inside the block, from when it is ready; ``how`` is passed to `subprocess.Popen`."""
    with log.open("wb") as output:
        # vllm serve has processes of its own: they are ended together
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, **how)
    try:
        deadline = time.monotonic() + START_S
        while not ready():
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command} did not start: {log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.1)  # a server tells nobody that it is ready
        yield
    finally:
        _end(server)


def _is_healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5):  # noqa: S310  # http on loopback; one that hangs is asked again
            return True
    except (urllib.error.URLError, OSError):
        return False


def _end(server: subprocess.Popen[bytes]) -> None:
    """Terminate the process first: torchrun's workers are in process groups of their own, and it ends them itself."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, kind)
            server.wait(STOP_S)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
    server.wait()
