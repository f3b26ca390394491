"""Prompts that are the same in every run."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from pytest_llmperf.errors import UsageError

if TYPE_CHECKING:
    import torch


def random_prompt(config: Any, *, batch_size: int, input_tokens: int, seed: int) -> torch.Tensor:
    """Seeded random token ids without special ones, of shape ``(batch_size, input_tokens)``, on the host.

    Raises:
        UsageError: the model's vocabulary holds nothing but special tokens.
    """
    import torch

    text_config = config.get_text_config()
    special = _special_ids(text_config)
    ordinary = torch.tensor([token for token in range(text_config.vocab_size) if token not in special])
    if not len(ordinary):
        raise UsageError(f"a vocabulary of {text_config.vocab_size} tokens holds no ordinary token to make a prompt of")
    generator = torch.Generator().manual_seed(seed)
    return ordinary[torch.randint(len(ordinary), (batch_size, input_tokens), generator=generator)]


def digest(tokens: torch.Tensor) -> str:
    """SHA-256 of token ids of any shape, first 16 hexadecimal digits."""
    import torch

    ids = tokens.to(device="cpu", dtype=torch.int64).contiguous()
    return hashlib.sha256(ids.numpy().tobytes()).hexdigest()[:16]


def _special_ids(config: Any) -> set[int]:
    found: set[int] = set()
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        ids = getattr(config, name, None)
        found.update(ids if isinstance(ids, list | tuple) else [ids] if ids is not None else [])
    return found
