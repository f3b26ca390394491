"""Greedy decode over a static KV cache: all steps have the same shapes, as torch.compile and CUDA graphs require."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pytest_llmperf.engines.executions.execution import (
    Generated,
    OnToken,
    greedy,
    is_encoder_decoder,
    last_logits_only,
    unnoticed,
)
from pytest_llmperf.engines.executions.greedy_loop import PROBED, Options, find_new_cache, greedy_loop
from pytest_llmperf.errors import ExecutionUnavailable, UsageError
from pytest_llmperf.metrics import Figure
from pytest_llmperf.text import first_line

if TYPE_CHECKING:
    import torch

STATIC_NAMES = ("past_key_values", "cache_params")
"""Arguments of forwards that take a cache of transformers."""

NOTHING: Options = MappingProxyType({})

Step = Callable[["torch.Tensor", Options], "torch.Tensor"]
"""Maps token ids of shape ``(batch, 1)``, with further arguments of the forward, to the next token ids.

The next step may overwrite the result's memory.
"""


def static_cache(model: Any, prompt: torch.Tensor, output_tokens: int) -> Any:
    """Create a transformers StaticCache for a prompt and all output tokens but the last; allocated on first use.

    Raises:
        UsageError: a single output token has no decode.
    """
    from transformers import StaticCache

    if output_tokens == 1:
        raise UsageError("output_tokens=1 has no decode to compile or capture: expected 2 or more")
    return StaticCache(config=model.config, max_cache_len=prompt.shape[1] + output_tokens - 1)


def check_static(model: Any, prompt: torch.Tensor, execution: str) -> None:
    """Check with a short eager request that a model decodes over a static cache.

    Raises:
        ExecutionUnavailable: it does not.
    """
    short, name, reason = prompt[:, :PROBED], cache_argument(model), ""
    if is_encoder_decoder(model):
        reason = "an encoder-decoder has two caches"
    elif name is None:
        reason = f"its forward takes neither {' nor '.join(STATIC_NAMES)}"
    else:
        cache = static_cache(model, short, PROBED)
        try:
            next_token(model, cache, prefill(model, cache, short, name=name), name=name)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            reason = first_line(error).rstrip(".")
    if reason:
        raise ExecutionUnavailable(
            f"execution {execution!r} cannot decode {type(model).__name__} over a static cache: {reason}: "
            "use 'generate' or 'loop'"
        )


def cache_argument(model: Any) -> str | None:
    """Name of the forward's argument that takes a cache of transformers; ``None`` if it has none."""
    accepted = inspect.signature(model.forward).parameters
    return next((name for name in STATIC_NAMES if name in accepted), None)


def prefill(model: Any, cache: Any, prompt: torch.Tensor, *, name: str = STATIC_NAMES[0]) -> torch.Tensor:
    """Reset the cache, run the prefill, and return the first output tokens."""
    cache.reset()
    out = model(input_ids=prompt, **{name: cache}, use_cache=True, **last_logits_only(model))
    return greedy(out)


def next_token(
    model: Any, cache: Any, token: torch.Tensor, position: Options = NOTHING, *, name: str = STATIC_NAMES[0]
) -> torch.Tensor:
    """Run one decode step: a single forward."""
    return greedy(model(input_ids=token, **{name: cache}, **position, use_cache=True))


def decode(
    first: torch.Tensor, step: Step, output_tokens: int, on_token: OnToken, positions: Iterable[Options]
) -> torch.Tensor:
    """Decode from the token ids ``first``; return shape ``(batch, output tokens)``. Nothing synchronizes."""
    import torch

    on_token()
    tokens = [first]
    for position in islice(positions, output_tokens - 1):
        token = step(tokens[-1], position)
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
    positions: Sequence[Options]
    name: str = STATIC_NAMES[0]
    """The forward's argument that takes the cache."""

    def __call__(self, output_tokens: int, on_token: OnToken) -> Generated:
        """Make one request."""
        first = prefill(self.model, self.cache, self.prompt, name=self.name)
        return Generated(decode(first, self.step, output_tokens, on_token, self.positions), self.cache)


def tokens_of_loop(model: Any, prompt: torch.Tensor, output_tokens: int) -> torch.Tensor:
    """Output tokens of the greedy loop; its KV cache is freed.

    Raises:
        ExecutionUnavailable: the model returns no cache, or one that lacks tokens.
    """
    new_cache = find_new_cache(model, prompt)
    return greedy_loop(model, prompt, output_tokens, unnoticed, new_cache=new_cache).tokens


def unlike_loop(generated: Generated, expected: torch.Tensor) -> Figure:
    """Number of tokens that differ from the greedy loop's."""
    return Figure("tokens_unlike_loop", int((generated.tokens != expected).sum()))
