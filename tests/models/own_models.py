"""Models that a user's code builds: a small Llama, and torch modules with the forward signature of transformers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

VOCABULARY, HIDDEN = 128, 64


def llama(**changes: Any) -> Any:
    """A transformers model, from a config."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    base = {
        "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**base | changes)).eval()


class Recurrent(torch.nn.Module):
    """A decoder of torch's own layers: a GRU, whose hidden state is its cache."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = torch.nn.Embedding(VOCABULARY, HIDDEN)
        self.gru = torch.nn.GRU(HIDDEN, HIDDEN, batch_first=True)
        self.head = torch.nn.Linear(HIDDEN, VOCABULARY)

    def forward(self, input_ids: torch.Tensor, past_key_values: Any = None, use_cache: bool = False) -> Any:
        hidden, state = self.gru(self.embed(input_ids), past_key_values)
        return SimpleNamespace(logits=self.head(hidden), past_key_values=state if use_cache else None)


class Positional(Recurrent):
    """It has a second embedding, so its vocabulary is not obvious."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = torch.nn.Embedding(32, HIDDEN)


class Unlike(torch.nn.Module):
    """Its forward takes ids alone."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return ids
