"""Chromium without a window, told what to do over a pipe: its DevTools protocol, of which this needs six commands."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from types import TracebackType
from typing import Any, Self

SWITCHES = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--remote-debugging-pipe",
)
TO_BROWSER, FROM_BROWSER = 3, 4
"""The file descriptors that it speaks over."""


def find_chromium() -> str | None:
    """The browser that is installed, if one is."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """One page of a browser of its own; ``problems`` holds what the page complained of."""

    def __init__(self, executable: str) -> None:
        self.problems: list[str] = []
        self._profile = tempfile.mkdtemp()
        theirs, self._write = os.pipe()
        self._read, ours = os.pipe()
        # A shell puts the pipes where the browser looks for them: this process may use these numbers itself.
        script = f'exec "$@" {TO_BROWSER}<&{theirs} {FROM_BROWSER}>&{ours}'
        command = ["bash", "-c", script, "bash", executable, *SWITCHES, f"--user-data-dir={self._profile}"]
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(command, pass_fds=(theirs, ours), stdout=quiet, stderr=quiet)
        os.close(theirs)
        os.close(ours)
        self._count, self._buffer, self._session = 0, b"", ""
        target = self._send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._send(f"{domain}.enable")

    def __enter__(self) -> Self:
        """The browser itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the browser."""
        self._process.kill()
        self._process.wait()
        os.close(self._write)
        os.close(self._read)
        shutil.rmtree(self._profile, ignore_errors=True)

    def open(self, address: str, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Show a page, and wait until it is loaded."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < height}
        self._send("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._send("Emulation.setEmulatedMedia", features=[scheme])
        self._send("Page.navigate", url="about:blank")
        self._send("Page.navigate", url=address)
        self.wait_for("location.href !== 'about:blank' && document.readyState === 'complete'")

    def wait_for(self, condition: str, *, seconds: float = 30.0) -> None:
        """Wait until an expression of JavaScript is true.

        Raises:
            TimeoutError: it does not come true.
        """
        end = time.monotonic() + seconds
        while not self.run(condition):
            if time.monotonic() > end:
                raise TimeoutError(f"{condition} is not true after {seconds} s; the page says: {self.problems}")
            time.sleep(0.05)  # the page has to come to it

    def run(self, expression: str) -> Any:
        """The value of an expression of JavaScript.

        Raises:
            RuntimeError: it raises.
        """
        found = self._send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{expression}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def _send(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        os.write(
            self._write, json.dumps(message | ({"sessionId": self._session} if self._session else {})).encode() + b"\0"
        )
        while (answer := self._receive()).get("id") != self._count:
            self._note(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return dict(answer["result"])

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            part = os.read(self._read, 1 << 16)
            if not part:
                raise RuntimeError("the browser has ended")
            self._buffer += part
        text, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(text))

    def _note(self, event: dict[str, Any]) -> None:
        if event.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
            self.problems.append(json.dumps(event["params"]))
