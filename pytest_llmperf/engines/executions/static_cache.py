"""Greedy decode over a static KV cache: all steps have the same shapes, as torch.compile and CUDA graphs require."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_llmperf.engines.executions.execution import (
    Generated,
    OnToken,
    greedy,
    greedy_loop,
    last_logits_only,
    unnoticed,
)
from pytest_llmperf.errors import UsageError
from pytest_llmperf.metrics import Figure

if TYPE_CHECKING:
    import torch

Step = Callable[["torch.Tensor"], "torch.Tensor"]
"""Maps token ids of shape ``(batch, 1)`` to the next ones, in memory that the next step may overwrite."""


def static_cache(model: Any, prompt: torch.Tensor, output_tokens: int) -> Any:
    """Create a transformers StaticCache for a prompt and all output tokens but the last; allocated on first use.

    Raises:
        UsageError: a single output token has no decode.
    """
    from transformers import StaticCache

    if output_tokens == 1:
        raise UsageError("output_tokens=1 has no decode to compile or capture: expected 2 or more")
    return StaticCache(config=model.config, max_cache_len=prompt.shape[1] + output_tokens - 1)


def prefill(model: Any, cache: Any, prompt: torch.Tensor) -> torch.Tensor:
    """Reset the cache, run the prefill, and return the first output tokens."""
    cache.reset()
    out = model(input_ids=prompt, past_key_values=cache, use_cache=True, **last_logits_only(model))
    return greedy(out)


def next_token(model: Any, cache: Any, token: torch.Tensor) -> torch.Tensor:
    """Run one decode step: a single forward."""
    return greedy(model(input_ids=token, past_key_values=cache, use_cache=True))


def decode(first: torch.Tensor, step: Step, output_tokens: int, on_token: OnToken) -> torch.Tensor:
    """Decode from the token ids ``first``; return shape ``(batch, output tokens)``. Nothing synchronizes."""
    import torch

    on_token()
    tokens = [first]
    for _ in range(output_tokens - 1):
        token = step(tokens[-1])
        on_token()
        tokens.append(token.clone())
    return torch.cat(tokens, dim=1)


@dataclass(frozen=True)
class StaticRequest:
    """A request with eager prefill and the given decode step."""

    model: Any
    cache: Any
    prompt: torch.Tensor
    step: Step

    def __call__(self, output_tokens: int, on_token: OnToken) -> Generated:
        """Make one request."""
        first = prefill(self.model, self.cache, self.prompt)
        return Generated(decode(first, self.step, output_tokens, on_token), self.cache)


def tokens_of_loop(model: Any, prompt: torch.Tensor, output_tokens: int) -> torch.Tensor:
    """Output tokens of the greedy loop; its KV cache is freed."""
    return greedy_loop(model, prompt, output_tokens, unnoticed).tokens


def unlike_loop(generated: Generated, expected: torch.Tensor) -> Figure:
    """Number of tokens that differ from the greedy loop's."""
    return Figure("tokens_unlike_loop", int((generated.tokens != expected).sum()))
