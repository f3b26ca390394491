"""The bare greedy decode loop that the measurements of every tool are compared with."""

import time

import torch
from transformers import PreTrainedModel


@torch.inference_mode()
def bare_decode(model: PreTrainedModel, input_ids: torch.Tensor, new_tokens: int) -> list[float]:
    """Decode ``new_tokens`` greedily and return the ``time.perf_counter`` stamp after each of them (CPU only)."""
    stamps: list[float] = []
    tokens, cache = input_ids, None
    for _ in range(new_tokens):
        output = model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
        tokens, cache = output.logits[:, -1:].argmax(-1), output.past_key_values
        stamps.append(time.perf_counter())
    return stamps
