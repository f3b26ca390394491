"""Greedy decode by plain forwards over the cache that the model returns: prefill, then one forward per token."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

from pytest_llmperf.engines.executions.execution import (
    CACHE_NAMES,
    Generated,
    OnToken,
    PreparedExecution,
    greedy,
    is_encoder_decoder,
    last_logits_only,
    unnoticed,
)
from pytest_llmperf.errors import ExecutionUnavailable
from pytest_llmperf.hardware.clock import Clock
from pytest_llmperf.metrics import Scalar

if TYPE_CHECKING:
    import torch

Options = Mapping[str, Any]
"""Further arguments of a forward."""

PROBED = 2
"""Prompt tokens and output tokens of the request that checks the cache."""


@dataclass(frozen=True)
class GreedyLoop:
    """Prefill, then one forward per token, without synchronizing between tokens."""

    name: ClassVar[str] = "loop"

    settings: Mapping[str, Scalar] = field(default_factory=dict, hash=False)

    @contextmanager
    def open(self, model: Any, prompt: torch.Tensor, output_tokens: int, clock: Clock) -> Iterator[PreparedExecution]:  # noqa: ARG002  # other executions use it
        """Check with a short request that the model decodes over a cache.

        Raises:
            ExecutionUnavailable: the model returns no cache, or one that lacks tokens.
        """
        positions = step_positions(model, prompt, output_tokens)
        new_cache = find_new_cache(model, prompt)
        yield PreparedExecution(partial(greedy_loop, model, prompt, positions=positions, new_cache=new_cache))


def greedy_loop(  # noqa: PLR0913  # a request, and what is prepared for it
    model: Any,
    prompt: torch.Tensor,
    output_tokens: int,
    on_token: OnToken,
    *,
    positions: Sequence[Options] | None = None,
    new_cache: Callable[[], Options] = dict,
) -> Generated:
    """Make one request. EOS does not stop it. The prefill of an encoder-decoder is the encoder and the first step.

    Args:
        model: the model, or a module whose forward has the same arguments.
        prompt: token ids of shape ``(batch, input tokens)``.
        output_tokens: number of tokens to produce for each sequence.
        on_token: called once per output token of the batch.
        positions: the result of `step_positions`, to prepare it outside the request.
        new_cache: creates the prefill's cache, for a model that returns none by itself.

    Raises:
        ExecutionUnavailable: the model returns no cache.
    """
    import torch

    steps = step_positions(model, prompt, output_tokens) if positions is None else positions
    ids, first, encoded = _first_ids(model, prompt)
    given = new_cache()
    out = model(**{ids: first}, **encoded, **given, use_cache=True, **last_logits_only(model))
    token = greedy(out)
    on_token()
    tokens = [token]
    name, cache = _returned_cache(model, out, given)
    for position in islice(steps, output_tokens - 1):
        out = model(**{ids: token, name: cache}, **encoded, **position, use_cache=True)
        token = greedy(out)
        on_token()
        tokens.append(token)
        returned = getattr(out, name, None)
        cache = cache if returned is None else returned
    return Generated(torch.cat(tokens, dim=1), cache)


def step_positions(model: Any, prompt: torch.Tensor, output_tokens: int) -> Sequence[Options]:
    """The argument ``position_ids`` of each decode step, as ``generate`` passes it; empty if it passes none.

    Some models count positions from 0 in each forward, and some from 1. Forwards with ``cache_position`` (transformers
    before 5.4) count by the cache.
    """
    import torch

    steps, accepted = output_tokens - 1, inspect.signature(model.forward).parameters
    prepare = getattr(model, "prepare_inputs_for_generation", None)
    if prepare is None or "position_ids" not in accepted or "cache_position" in accepted:
        return [{}] * steps
    ids = torch.zeros(1, prompt.shape[1] + steps, dtype=torch.long, device=prompt.device)
    counted = torch.arange(ids.shape[1], device=prompt.device)[None]
    found = prepare(ids, position_ids=counted, use_cache=True).get("position_ids")
    if found is None:
        return [{}] * steps
    return [{"position_ids": position} for position in found[..., prompt.shape[1] :].split(1, dim=-1)]


def find_new_cache(model: Any, prompt: torch.Tensor) -> Callable[[], Options]:
    """What creates the prefill's cache: nothing, if the model creates one by itself, or an empty DynamicCache.

    Raises:
        ExecutionUnavailable: the model returns no cache, or one that lacks tokens.
    """
    try:
        _check_cache(model, prompt, dict)
    except ExecutionUnavailable:
        if not hasattr(model, "config") or "past_key_values" not in inspect.signature(model.forward).parameters:
            raise
    else:
        return dict
    new_cache = partial(_dynamic_cache, model)
    _check_cache(model, prompt, new_cache)
    return new_cache


def _check_cache(model: Any, prompt: torch.Tensor, new_cache: Callable[[], Options]) -> None:
    """Make a short request. Its cache must hold all tokens but the last, if it has a length."""
    short = prompt[:, :PROBED]
    held = positions_held(greedy_loop(model, short, PROBED, unnoticed, new_cache=new_cache).cache)
    expected = PROBED - 1 + (1 if is_encoder_decoder(model) else short.shape[1])
    if held not in (None, expected):
        raise ExecutionUnavailable(_unavailable(model, f"its cache holds {held} tokens after {expected}"))


def positions_held(cache: Any) -> int | None:
    """Number of positions in a cache; ``None`` for recurrent states, which have no length."""
    try:
        return int(cache.get_seq_length())
    except (AttributeError, TypeError, ValueError):
        return None


def _first_ids(model: Any, prompt: torch.Tensor) -> tuple[str, torch.Tensor, Options]:
    """Name and value of the prefill's token ids, and the arguments that each forward shares."""
    import torch

    if not is_encoder_decoder(model):
        return "input_ids", prompt, {}
    encoded = model.get_encoder()(input_ids=prompt)
    start = torch.full((prompt.shape[0], 1), _decoder_start(model), dtype=torch.long, device=prompt.device)
    return "decoder_input_ids", start, {"encoder_outputs": encoded}


def _decoder_start(model: Any) -> int:
    """The decoder's first token, as ``generate`` finds it."""
    config = model.generation_config
    start: int = config.bos_token_id if config.decoder_start_token_id is None else config.decoder_start_token_id
    return start


def _returned_cache(model: Any, out: Any, given: Options) -> tuple[str, Any]:
    """Name and value of the cache in an output, or of the given one that the model filled."""
    returned = ((name, getattr(out, name, None)) for name in CACHE_NAMES)
    found = next((pair for pair in returned if pair[1] is not None), None) or next(iter(given.items()), None)
    if found is None:
        raise ExecutionUnavailable(_unavailable(model, "its forward returns no cache"))
    return found


def _dynamic_cache(model: Any) -> Options:
    from transformers import DynamicCache

    return {"past_key_values": DynamicCache(config=model.config.get_text_config(decoder=True))}


def _unavailable(model: Any, reason: str) -> str:
    return (
        f"execution 'loop' cannot decode {type(model).__name__}: {reason}, so tokens would lack their context: "
        "use execution 'generate'"
    )
