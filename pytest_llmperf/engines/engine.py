"""Engine interface: serves timed requests and returns token timestamps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pytest_llmperf.errors import UsageError

if TYPE_CHECKING:
    from pytest_llmperf.metrics import Scalar


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen: greedily at temperature 0, else by sampling."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise UsageError(f"temperature={self.temperature!r}: expected 0 (greedy) or more")
        if self.top_k is not None and not self.top_k >= 1:
            raise UsageError(f"top_k={self.top_k!r}: expected 1 or more")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UsageError(f"top_p={self.top_p!r}: expected a number above 0 and at most 1")

    def __str__(self) -> str:
        """The name in a workload: ``greedy``, or ``temperature=0.6 top_p=0.9``."""
        if self.temperature == 0:
            return "greedy"
        given = {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
        return " ".join(f"{name}={value:g}" for name, value in given.items() if value is not None)


@dataclass(frozen=True, kw_only=True)
class EngineRequest:
    """One request: a prompt, the number of output tokens (EOS does not stop it), and the arrival time."""

    prompt: tuple[int, ...]
    """Token ids."""
    output_tokens: int
    arrival_s: float = 0.0
    """Seconds since the schedule began."""
    shared_prefix: int = 0
    """Tokens that the other prompts begin with as well: an engine may take them from a prefix cache. Where it is 0, no
    token may come from a cache, because every pass repeats the same prompts."""


@dataclass(frozen=True, kw_only=True)
class EngineResponse:
    """The result of a request; times are seconds since the schedule began, by the host's monotonic clock."""

    sent_s: float
    """When it was passed to the engine: after its arrival if the client was late."""
    first_s: float
    """When its first output token was available."""
    last_s: float
    """When its last output token was available."""
    input_tokens: int
    """The engine's count."""
    output_tokens: int
    """Tokens produced, counted from ids or by the engine, never by encoding text again."""
    first_tokens: int = 1
    """Output tokens that came first, at ``first_s``."""
    gaps_s: tuple[float, ...] | None = None
    """Gaps between consecutive tokens; ``None`` where several tokens came at a time."""
    cached_tokens: int | None = None
    """Tokens of the prompt that came from a prefix cache; ``None`` if the engine does not report them."""


class Engine(Protocol):
    """Serves requests of one model. It is ready once created; `close` releases the model."""

    name: str
    """Recorded in the workload: ``transformers``, ``openai``, ``vllm``."""

    @property
    def model(self) -> Mapping[str, str | None]:
        """The model: ``model``, ``revision``, ``quantization``, ``dtype``, ``attention``; ``None`` if unknown."""

    @property
    def settings(self) -> Mapping[str, Scalar]:
        """Current settings that comparable runs must share, such as limits or values the engine chose."""

    @property
    def device(self) -> str | None:
        """The torch device, if the engine works in this process, so that its memory can be read; else ``None``."""

    @property
    def vocabulary(self) -> int:
        """Upper bound, exclusive, of the ids in random prompts."""

    @property
    def longest(self) -> int | None:
        """Most tokens of prompt and output together; ``None`` if unknown."""

    def serve_one(self, request: EngineRequest, sampling: Sampling) -> EngineResponse:
        """Serve a single request, as a client with only one request would.

        Raises:
            MeasurementError: the request failed or produced another number of tokens.
        """

    def serve(
        self, requests: Sequence[EngineRequest], *, max_concurrency: int, sampling: Sampling
    ) -> list[EngineResponse]:
        """Serve requests from their arrivals on, at most ``max_concurrency`` at once.

        Responses are in the order of the requests.

        Raises:
            MeasurementError: a request failed or produced another number of tokens. No request is left running.
        """

    def release(self) -> None:
        """Release what serving set up after a measurement, and keep the model."""

    def close(self) -> None:
        """Release the model, or close the connections to the server."""
