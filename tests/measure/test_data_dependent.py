"""Operators that depend on the prompt, as the routing of a mixture of experts makes them."""

from __future__ import annotations

import re

import pytest
from ticking_clock import TickingClock

pytest.importorskip("transformers")

import torch
from transformers import MixtralConfig, MixtralForCausalLM

from pytest_llmperf import ModelSpec
from pytest_llmperf.measure.generation import Measurement, Plan, measure_generation
from pytest_llmperf.metrics import NO_DECODE
from pytest_llmperf.models.load import load


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
def test_work_that_depends_on_the_prompt_is_not_called_exact(execution: str) -> None:
    """Several sequences reach another number of experts with each prompt."""
    counts = measured("eager", execution=execution).counts
    figure = counts.figure("operators_per_token")
    assert figure.value is None
    assert figure.reason.startswith("depends on the data: ")
    assert figure.reason.endswith("operators with two prompts (experts implementation eager)")
    assert " bytes moved with two prompts" in counts.figure("moved_bytes_per_token").reason
    assert "decode" not in counts.work


def test_what_agrees_stays_exact() -> None:
    """Each token is multiplied by as many experts, whichever they are."""
    found = measured("eager").counts.figure("flops_per_token")
    assert found.value > 0


def test_work_that_does_not_is_exact() -> None:
    """One operator multiplies all experts of a layer."""
    found = measured("grouped_mm")
    assert found.counts.figure("operators_per_token").value > 100
    assert set(found.counts.work) == {"prefill", "decode"}
    assert not any(figure.reason for figure in found.counts.figures)


def test_outliers_are_data(model_cache) -> None:
    """Their columns are multiplied once more in the dtype of the activations."""
    model = load(ModelSpec("synthetic:tiny", "int8-decomp"), "cpu").model
    plan = Plan(batch_size=1, input_tokens=6, output_tokens=5, execution="loop", requests=1, warmup_cap=0)
    counts = measure_generation(model, plan, device="cpu", clock=TickingClock()).counts
    assert counts.figure("operators_per_token").value > 100
    assert re.fullmatch(
        r"depends on the data: [\d.]+ and [\d.]+ FLOPs with two prompts \(outliers of \S+int8_mixed_scaled_mm\)",
        counts.figure("flops_per_token").reason,
    )
    assert not counts.work


def test_the_second_prompt_leaves_no_trace() -> None:
    """Digests, cache and prompt are those of the first, as in a measurement before."""
    one, two = measured("grouped_mm"), measured("eager")
    assert one.prompt_sha256 == two.prompt_sha256
    assert one.counts.token_digest == two.counts.token_digest
    assert one.counts.cache == two.counts.cache


def test_a_single_token_has_no_operators_to_compare() -> None:
    found = measured("eager", output_tokens=1).counts.figure("operators_per_token")
    assert (found.value, found.reason) == (None, NO_DECODE)
