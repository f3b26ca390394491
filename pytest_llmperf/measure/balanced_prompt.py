"""Prompts that load the experts of a mixture evenly, built by trying token ids on the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_llmperf.engines.conditions import measuring_conditions
from pytest_llmperf.errors import UsageError
from pytest_llmperf.measure.prompt import random_prompt
from pytest_llmperf.validation import require_whole

if TYPE_CHECKING:
    import torch

CANDIDATES = 8
"""Random continuations that are tried at each step."""
MOST_STEPS = 64
"""Steps for a sequence: longer prompts grow by several tokens a step, so that the cost stays bounded."""


def balanced_ids(model: Any, *, sequences: int, input_tokens: int, seed: int = 0) -> list[list[int]]:
    """Token ids of prompts that load all experts of all layers about equally during prefill.

    Each sequence grows step by step: of a few random continuations, the one that leaves the most even load is kept.
    Routing depends on the whole context, so ids alone cannot be balanced without the model. It also depends on
    rounding: on another device, or in another quantization, the same seed gives other ids.

    Args:
        model: a mixture of experts of transformers.
        sequences: number of prompts.
        input_tokens: length of each.
        seed: of the random continuations.

    Raises:
        UsageError: an argument is no whole number, or the model reports no routers.
    """
    import torch

    for name, value in (("sequences", sequences), ("input_tokens", input_tokens)):
        require_whole(name, value, at_least=1)
    step = -(-input_tokens // MOST_STEPS)
    random_ids = random_prompt(model.config, batch_size=sequences * CANDIDATES, input_tokens=input_tokens, seed=seed)
    load: torch.Tensor | float = 0.0
    found = []
    with measuring_conditions():
        for pool in random_ids.to(model.device).reshape(sequences, CANDIDATES, input_tokens):
            kept = pool[:, :0]
            for start in range(0, input_tokens, step):
                tried = torch.cat([kept, pool[:, start : start + step]], dim=1)
                loads = expert_loads(model, tried)
                best = int(((load + loads) ** 2).sum(dim=(1, 2)).argmin())
                kept = tried[best].expand(CANDIDATES, -1)
            load = load + loads[best]
            found.append(kept[0].tolist())
    return found


def expert_loads(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Number of tokens that each expert gets during prefill, of shape ``(sequences, layers, experts)``.

    Raises:
        UsageError: the model reports no routers.
    """
    import torch

    active = getattr(model.config.get_text_config(), "num_experts_per_tok", None)
    output = model(ids, output_router_logits=True, use_cache=False) if active else None
    routers = [logits for logits in getattr(output, "router_logits", None) or () if logits is not None]
    if not routers:
        raise UsageError(f"{type(model).__name__} reports no routers: expected a mixture of experts of transformers")
    return torch.stack(
        [_counted(logits.float().topk(active).indices, logits.shape[-1], len(ids)) for logits in routers], 1
    )


def imbalance(model: Any, ids: torch.Tensor) -> float:
    """Coefficient of variation of the experts' load by all sequences, as the mean over layers; 0 is even."""
    with measuring_conditions():
        loads = expert_loads(model, ids).sum(dim=0)
        return float((loads.std(dim=1, correction=0) / loads.mean(dim=1)).mean())


def _counted(chosen: torch.Tensor, experts: int, sequences: int) -> torch.Tensor:
    """Count each sequence's choices of each expert; the routers see all tokens of all sequences in one row."""
    import torch

    chosen = chosen.reshape(sequences, -1)
    counts = torch.zeros(sequences, experts, device=chosen.device)
    return counts.scatter_add_(1, chosen, torch.ones_like(chosen, dtype=counts.dtype))
