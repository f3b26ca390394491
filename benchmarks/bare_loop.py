"""The bare greedy decode loop that the measurements of every tool are compared with."""

from collections.abc import Callable
from typing import TypeVar

import torch
from transformers import PreTrainedModel

Stamp = TypeVar("Stamp")


@torch.inference_mode()
def bare_decode(
    model: PreTrainedModel, input_ids: torch.Tensor, new_tokens: int, stamp: Callable[[], Stamp]
) -> list[Stamp]:
    """Decode ``new_tokens`` greedily and return the stamp after each of them; on a GPU it must be the device's own."""
    stamps: list[Stamp] = []
    tokens, cache = input_ids, None
    for _ in range(new_tokens):
        output = model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
        tokens, cache = output.logits[:, -1:].argmax(-1), output.past_key_values
        stamps.append(stamp())
    return stamps
