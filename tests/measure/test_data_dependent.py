"""Operators that depend on the prompt, as the routing of a mixture of experts makes them."""

from __future__ import annotations

import pytest
from ticking_clock import TickingClock

pytest.importorskip("transformers")

import torch
from transformers import MixtralConfig, MixtralForCausalLM

from pytest_llmperf.measure.generation import Measurement, Plan, measure_generation


def mixtral(implementation: str) -> MixtralForCausalLM:
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=512, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=8, num_experts_per_tok=2,
    )  # fmt: skip
    config._experts_implementation = implementation  # as from_pretrained sets it
    model = MixtralForCausalLM(config).eval()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.gate.weight.mul_(100)  # otherwise all tokens go the same way
    return model


def measured(implementation: str, **changes) -> Measurement:
    base = {"batch_size": 4, "input_tokens": 6, "output_tokens": 8, "execution": "loop", "requests": 1, "warmup_cap": 0}
    return measure_generation(mixtral(implementation), Plan(**base | changes), device="cpu", clock=TickingClock())


@pytest.mark.parametrize("execution", ["loop", "generate"])
def test_operators_that_depend_on_the_prompt_are_not_called_exact(execution: str) -> None:
    """Several sequences reach another number of experts with each prompt."""
    found = measured("eager", execution=execution)
    assert found.counts.operators_per_token is None
    assert found.counts.data_dependent.startswith("depends on the data: ")
    assert found.counts.data_dependent.endswith("operators with two prompts (experts implementation eager)")


def test_operators_that_do_not_are_exact() -> None:
    """One operator multiplies all experts of a layer."""
    found = measured("grouped_mm")
    assert found.counts.operators_per_token > 100
    assert not found.counts.data_dependent


def test_the_second_prompt_leaves_no_trace() -> None:
    """Digests, cache and prompt are those of the first, as in a measurement before."""
    one, two = measured("grouped_mm"), measured("eager")
    assert one.prompt_sha256 == two.prompt_sha256
    assert one.counts.token_digest == two.counts.token_digest
    assert one.counts.cache == two.counts.cache


def test_a_single_token_has_no_operators_to_compare() -> None:
    found = measured("eager", output_tokens=1)
    assert found.counts.operators_per_token is None
    assert not found.counts.data_dependent
