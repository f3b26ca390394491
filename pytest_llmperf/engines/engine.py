"""What an engine is to those who measure it: something that is asked at given moments and tells when tokens came."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pytest_llmperf.errors import UsageError

if TYPE_CHECKING:
    from pytest_llmperf.metrics import Scalar


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen: greedily at a temperature of 0, else drawn."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise UsageError(f"temperature={self.temperature!r}: expected 0 (greedy) or more")
        if self.top_k is not None and not self.top_k >= 1:
            raise UsageError(f"top_k={self.top_k!r}: expected 1 or more")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UsageError(f"top_p={self.top_p!r}: expected a share above 0, 1 at most")

    def __str__(self) -> str:
        """As a workload names it: ``greedy``, or ``temperature=0.6 top_p=0.9``."""
        if self.temperature == 0:
            return "greedy"
        given = {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
        return " ".join(f"{name}={value:g}" for name, value in given.items() if value is not None)


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One request: a prompt, how many tokens to produce (the end token does not stop it), and when it arrives."""

    prompt: tuple[int, ...]
    """Token ids."""
    output_tokens: int
    arrival_s: float = 0.0
    """Since the schedule began."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What became of a request; moments are seconds since the schedule began, by the host's monotonic clock."""

    sent_s: float
    """When it was handed to the engine: later than its arrival where whoever asks was late."""
    first_s: float
    """When its first output token was here."""
    last_s: float
    """When its last output token was here."""
    input_tokens: int
    """As the engine counted them."""
    output_tokens: int
    """Tokens produced, counted from ids or by the engine; never by encoding text again."""
    gaps_s: tuple[float, ...] | None = None
    """Between consecutive tokens; ``None`` where tokens came several at a time."""


class Engine(Protocol):
    """Serves requests of one model. Ready when it exists; `close` lets the model go."""

    name: str
    """Recorded in the workload: ``transformers``, ``openai``, ``vllm``."""

    @property
    def model(self) -> Mapping[str, str | None]:
        """What is served: ``model``, ``revision``, ``quantization``, ``dtype``, ``attention``; ``None`` if untold."""

    @property
    def settings(self) -> Mapping[str, Scalar]:
        """What else two runs must have in common, of what is set up now: such as limits, or what was chosen for it."""

    @property
    def device(self) -> str | None:
        """Where it works, as torch names it, if that is in this process; there its memory can be read."""

    @property
    def vocabulary(self) -> int:
        """Ids of random prompts are below this."""

    @property
    def longest(self) -> int | None:
        """Most tokens that prompt and output may have together; ``None`` if untold."""

    def alone(self, ask: Ask, sampling: Sampling) -> Answer:
        """Serve a single request as whoever has just one would.

        Raises:
            MeasurementError: it failed, or produced other than what was asked for.
        """

    def serve(self, asks: Sequence[Ask], *, at_most: int, sampling: Sampling) -> list[Answer]:
        """Serve requests from their arrivals on, at most so many at once; answers are in the order of the requests.

        Raises:
            MeasurementError: one failed, or produced other than what was asked for. None is left running.
        """

    def release(self) -> None:
        """Let go of what serving set up, and keep the model: a measurement has ended."""

    def close(self) -> None:
        """Let go of the model, or of the connections to the server."""
