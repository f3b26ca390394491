"""Serving plan: reproducible requests, scheduler, arrival rate and number of passes."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any, Final

from pytest_llmperf.engines.engine import EngineRequest, Sampling
from pytest_llmperf.errors import UsageError
from pytest_llmperf.measure.prompt import digest
from pytest_llmperf.validation import require_whole

if TYPE_CHECKING:
    from pytest_llmperf.metrics import Scalar

NAIVE: Final = "naive"
"""One request after another: each arrives when the previous one has ended."""
OFFLINE: Final = "offline"
"""All requests at once, all of them concurrently."""
ONLINE: Final = "online"
"""Requests at their arrival times, with limited concurrency."""
SCHEDULERS = (NAIVE, OFFLINE, ONLINE)

Length = int | tuple[int, int]
"""A number of tokens, or the minimum and maximum of a uniform distribution."""

GREEDY = Sampling()


@dataclass(frozen=True, kw_only=True)
class ServingPlan:
    """Which requests to serve, how, and how many passes."""

    scheduler: str
    requests: int
    input_tokens: Length
    output_tokens: Length
    prompts: tuple[tuple[int, ...], ...] | None = None
    """Token ids of the requests, which have their own length; random ids otherwise."""
    max_batch_size: int = 8
    """Most concurrent requests of the online scheduler."""
    shared_prefix: int = 0
    """Tokens that all prompts begin with; the rest of each prompt is drawn anew for every pass."""
    sampling: Sampling = GREEDY
    rate: float | None = None
    """Poisson arrivals per second of the online scheduler; ``None`` for all at once."""
    seed: int = 0
    repeats: int = 3
    warmup_cap: int = 10

    def __post_init__(self) -> None:
        if self.scheduler not in SCHEDULERS:
            raise UsageError(f"unknown scheduler {self.scheduler!r}: expected one of {', '.join(SCHEDULERS)}")
        for name in ("requests", "max_batch_size", "repeats"):
            require_whole(name, getattr(self, name), at_least=1)
        require_whole("warmup_cap", self.warmup_cap, at_least=0)
        for name in ("input_tokens", "output_tokens"):
            _check_length(name, getattr(self, name))
        if self.prompts is not None:
            self._check_prompts(self.prompts)
        self._check_prefix()
        if self.rate is not None:
            self._check_rate(self.rate)

    @property
    def max_concurrency(self) -> int:
        """Most concurrent requests."""
        return {NAIVE: 1, OFFLINE: self.requests, ONLINE: self.max_batch_size}[self.scheduler]

    @property
    def settings(self) -> dict[str, Scalar]:
        """The workload's settings in addition to the fields that every workload has."""
        given = list(map(len, (self.prompts or ())[: self.requests]))
        inputs = (min(given), max(given)) if given else self.input_tokens
        lengths = {"input_lengths": inputs, "output_lengths": self.output_tokens}
        told: dict[str, Scalar] = {name: "{}-{}".format(*_bounds(length)) for name, length in lengths.items()}
        shared = {"shared_prefix": self.shared_prefix} if self.shared_prefix else {}
        return {"requests": self.requests, "rate_per_s": self.rate, **told, **shared}

    def _check_prompts(self, prompts: Sequence[Sequence[int]]) -> None:
        if len(prompts) < self.requests:
            raise UsageError(
                f"a prompt of {len(prompts)} sequences for {self.requests} requests: expected one for each"
            )
        if self.shared_prefix:
            raise UsageError(f"shared_prefix={self.shared_prefix} with a prompt: expected random ids: leave out one")

    def _check_prefix(self) -> None:
        require_whole("shared_prefix", self.shared_prefix, at_least=0)
        shortest = _bounds(self.input_tokens)[0]
        if self.shared_prefix >= shortest:
            raise UsageError(
                f"shared_prefix={self.shared_prefix}: expected fewer than the {shortest} tokens of the shortest prompt"
            )

    def _check_rate(self, rate: float) -> None:
        if self.scheduler != ONLINE:
            raise UsageError(
                f"rate={rate!r} with the {self.scheduler} scheduler: only the online scheduler has an arrival rate"
            )
        if not isinstance(rate, int | float) or isinstance(rate, bool) or not 0 < rate < math.inf:
            raise UsageError(f"rate={rate!r}: expected requests per second, above 0, or None for all at once")


def make_requests(plan: ServingPlan, vocabulary: int, *, renewal: str = "") -> list[EngineRequest]:
    """Create a plan's requests, with random ids below ``vocabulary``; the same in every run.

    The arrival rate changes only the arrival times. With a shared prefix, another ``renewal`` changes what follows it:
    a prefix cache would find prompts that come again as a whole.
    """
    draw = random.Random(plan.seed)  # noqa: S311  # not used for security
    inputs, outputs = (
        [draw.randint(*_bounds(length)) for _ in range(plan.requests)]
        for length in (plan.input_tokens, plan.output_tokens)
    )
    prefix, rest = draw.choices(range(vocabulary), k=plan.shared_prefix), draw
    if plan.shared_prefix:
        rest = random.Random(f"{plan.seed} {renewal}")  # noqa: S311  # not used for security
    prompts = _given(plan, vocabulary) or [
        (*prefix, *rest.choices(range(vocabulary), k=length - plan.shared_prefix)) for length in inputs
    ]
    gaps = [draw.expovariate(plan.rate) if plan.rate else 0.0 for _ in prompts[1:]]
    arrivals = accumulate(gaps, initial=0.0)
    return [
        EngineRequest(prompt=prompt, output_tokens=output, arrival_s=arrival, shared_prefix=plan.shared_prefix)
        for prompt, output, arrival in zip(prompts, outputs, arrivals, strict=True)
    ]


def _given(plan: ServingPlan, vocabulary: int) -> Sequence[tuple[int, ...]]:
    """The plan's own prompts, if it has them."""
    prompts = (plan.prompts or ())[: plan.requests]
    if prompts and (largest := max(map(max, prompts))) >= vocabulary:
        raise UsageError(f"the prompt has token id {largest}: expected ids below the vocabulary of {vocabulary}")
    return prompts


def digest_requests(requests: Sequence[EngineRequest]) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of all prompts and lengths."""
    import torch

    told = ((len(request.prompt), request.output_tokens, *request.prompt) for request in requests)
    return digest(torch.tensor(list(chain.from_iterable(told))))


def _bounds(length: Length) -> tuple[int, int]:
    return (length, length) if isinstance(length, int) else length


def _check_length(name: str, given: Any) -> None:
    low, high = given if isinstance(given, tuple) and len(given) == 2 else (given, given)  # noqa: PLR2004  # a range
    require_whole(name, low, at_least=1)
    require_whole(name, high, at_least=1)
    if low > high:
        raise UsageError(f"{name}={given!r}: expected (minimum, maximum)")
