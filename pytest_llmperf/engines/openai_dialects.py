"""Request formats for a fixed number of output tokens. OpenAI's protocol has none, but servers have extensions."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from pytest_llmperf.engines.engine import EngineRequest, Sampling
from pytest_llmperf.engines.sse import quote
from pytest_llmperf.errors import UsageError

COMPLETIONS, CHAT = "/completions", "/chat/completions"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
"""Nearly every tokenizer has a token for a space and one of these letters. The server's count is recorded."""


@dataclass(frozen=True)
class RequestFormat:
    """A request format: how a server takes a prompt, and how it is kept from stopping early."""

    path: str
    prompt: str
    """``ids``, or ``text``: single-letter words, as many as there are ids."""
    fixed_by: str
    fix: Callable[[EngineRequest, Sampling], Mapping[str, Any]]

    def body(self, request: EngineRequest, sampling: Sampling) -> dict[str, Any]:
        """The request body.

        Raises:
            UsageError: the server does not support this sampling.
        """
        stream = {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": request.output_tokens}
        return {**self._prompt(request), **stream, **self.fix(request, sampling)}

    def _prompt(self, request: EngineRequest) -> dict[str, Any]:
        if self.prompt == "ids":
            return {"prompt": list(request.prompt)}
        words = "".join(f" {LETTERS[token % len(LETTERS)]}" for token in request.prompt)
        return {"messages": [{"role": "user", "content": words}]} if self.path == CHAT else {"prompt": words}


def request_formats(paths: Sequence[str], *, ids: bool) -> Iterator[RequestFormat]:
    """Request formats for these paths, from the most exact to the most widely supported; token ids only if ``ids``."""
    for path in paths:
        if ids and path == COMPLETIONS:
            yield RequestFormat(path, "ids", "ignore_eos", _ignore_eos)
        yield RequestFormat(path, "text", "ignore_eos", _ignore_eos)
        yield RequestFormat(path, "text", "generation_config", _generation_config)
        yield RequestFormat(path, "text", "max_tokens", _plain)


def check_base_url(base_url: str) -> tuple[str, tuple[str, ...]]:
    """Split a base URL into a URL without a trailing slash and the paths to request.

    Raises:
        UsageError: the URL is invalid.
    """
    expected = "expected a URL like http://127.0.0.1:8000/v1"
    try:
        parts = urlsplit(base_url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    if not sound or parts.query or parts.fragment:
        raise UsageError(f"--llmperf-base-url {quote(base_url)!r}: {expected}")
    if parts.username or parts.password:
        raise UsageError(f"--llmperf-base-url: found a user or a password; {expected}, and a key in OPENAI_API_KEY")
    url = base_url.rstrip("/")
    for path in (CHAT, COMPLETIONS):
        if url.endswith(path):
            return url.removesuffix(path), (path,)
    return url, (COMPLETIONS, CHAT)


def _ignore_eos(request: EngineRequest, sampling: Sampling) -> dict[str, Any]:
    """Fields of vLLM's extension. The salt prevents prefix cache hits for repeated prompts."""
    salt = {} if request.shared_prefix else {"cache_salt": uuid.uuid4().hex}
    fixed = {"ignore_eos": True, "min_tokens": request.output_tokens, **salt}
    return fixed | _given(temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p)


def _generation_config(request: EngineRequest, sampling: Sampling) -> dict[str, Any]:
    """Fields of the extension of ``transformers serve``."""
    fixed = {"min_new_tokens": request.output_tokens, "max_new_tokens": request.output_tokens}
    if sampling.temperature == 0:
        return {"generation_config": json.dumps(fixed | {"do_sample": False})}
    drawn = _given(temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p)
    return {"generation_config": json.dumps(fixed | drawn | {"do_sample": True})}


def _plain(_send: EngineRequest, sampling: Sampling) -> dict[str, Any]:
    """Fields of the plain protocol. If EOS stops it early, that becomes an error later."""
    if sampling.top_k is not None:
        raise UsageError(f"top_k={sampling.top_k}: neither OpenAI's protocol nor this server has top_k: leave it out")
    return _given(temperature=sampling.temperature, top_p=sampling.top_p)


def _given(**values: float | None) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
