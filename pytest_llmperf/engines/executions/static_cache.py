"""Greedy decode over a cache of fixed size: every step is alike, as compiled code and CUDA graphs need it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_llmperf.engines.executions.execution import Generated, OnToken, greedy, greedy_loop, last_logits_only
from pytest_llmperf.errors import UsageError
from pytest_llmperf.metrics import Figure

if TYPE_CHECKING:
    import torch

Step = Callable[["torch.Tensor"], "torch.Tensor"]
"""From token ids of shape ``(batch, 1)`` to the next ones, in memory that the next step may write to."""


def static_cache(model: Any, prompt: torch.Tensor, output_tokens: int) -> Any:
    """A cache of the library with room for a prompt and all output tokens but the last, allocated on first use.

    Raises:
        UsageError: one output token has no decode.
    """
    from transformers import StaticCache

    if output_tokens == 1:
        raise UsageError("output_tokens=1 has no decode to compile or capture: ask for two or more")
    return StaticCache(config=model.config, max_cache_len=prompt.shape[1] + output_tokens - 1)


def prefill(model: Any, cache: Any, prompt: torch.Tensor) -> torch.Tensor:
    """The first output tokens; the cache holds this prompt and nothing else afterwards."""
    cache.reset()
    out = model(input_ids=prompt, past_key_values=cache, use_cache=True, **last_logits_only(model))
    return greedy(out)


def next_token(model: Any, cache: Any, token: torch.Tensor) -> torch.Tensor:
    """A step: one forward."""
    return greedy(model(input_ids=token, past_key_values=cache, use_cache=True))


def decode(first: torch.Tensor, step: Step, output_tokens: int, on_token: OnToken) -> torch.Tensor:
    """The output tokens, shape ``(batch, output tokens)``, of which ``first`` is the first; nothing synchronizes."""
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
    """Eager prefill, then steps."""

    model: Any
    cache: Any
    prompt: torch.Tensor
    step: Step

    def __call__(self, output_tokens: int, on_token: OnToken) -> Generated:
        """One request, as every execution makes it."""
        first = prefill(self.model, self.cache, self.prompt)
        return Generated(decode(first, self.step, output_tokens, on_token), self.cache)


def tokens_of_loop(model: Any, prompt: torch.Tensor, output_tokens: int) -> torch.Tensor:
    """What the bare loop produces; its cache is gone again."""
    return greedy_loop(model, prompt, output_tokens, lambda: None).tokens


def unlike_loop(generated: Generated, expected: torch.Tensor) -> Figure:
    """How many tokens are others than the bare loop's."""
    return Figure("tokens_unlike_loop", int((generated.tokens != expected).sum()))
