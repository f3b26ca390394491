"""The executions ``generate`` and ``loop`` produce the same tokens."""

from __future__ import annotations

import pytest
import torch

from pytest_llmperf import ModelSpec
from pytest_llmperf.engines.executions.execution import Generated, check_produced, library_generate, unnoticed
from pytest_llmperf.engines.executions.greedy_loop import greedy_loop
from pytest_llmperf.errors import MeasurementError
from pytest_llmperf.measure.prompt import random_prompt
from pytest_llmperf.measure.work import count_work
from pytest_llmperf.models.load import load


@pytest.fixture(scope="module")
def tiny(model_cache):
    return load(ModelSpec("synthetic:tiny", "fp32"), "cpu")


def test_fewer_tokens_than_asked_for_are_an_error():
    """A generation that stopped early is not comparable."""
    short = Generated(torch.zeros(2, 3), None)
    with pytest.raises(MeasurementError, match="produced 3 tokens for each of 2 prompts; expected 4 for each of 2"):
        check_produced(short, batch_size=2, output_tokens=4, counted=3)


def test_generate_does_what_it_does_for_its_user(tiny):
    """Each step dispatches the library's operators, including the EOS check, and EOS does not stop it."""
    model, prompt = tiny.model, random_prompt(tiny.model.config, batch_size=2, input_tokens=5, seed=0)
    given = {"attention_mask": torch.ones_like(prompt), "do_sample": False}
    counts: dict[str, list[int]] = {"theirs": [], "ours": []}
    for tokens in (6, 10):
        with count_work() as theirs:
            out = model.generate(prompt, max_new_tokens=tokens, **given)
        assert out.shape == (2, 5 + tokens), "no end token by chance"
        with count_work() as ours:
            found = library_generate(model, prompt, tokens, unnoticed)
        assert torch.equal(found.tokens, out[:, 5:])
        counts["theirs"].append(theirs.total)
        counts["ours"].append(ours.total)
    steps = {name: longer - shorter for name, (shorter, longer) in counts.items()}
    assert steps["ours"] == steps["theirs"] > 0


@pytest.mark.parametrize("several", [False, True], ids=["one", "several"])
def test_end_tokens_do_not_stop_generate(tiny, monkeypatch, several):
    """It produces the tokens of the loop, EOS included."""
    prompt = random_prompt(tiny.model.config, batch_size=1, input_tokens=5, seed=0)
    plain = greedy_loop(tiny.model, prompt, 6, unnoticed).tokens
    first = int(plain[0, 1])
    monkeypatch.setattr(tiny.model.generation_config, "eos_token_id", [first, 2] if several else first)
    assert torch.equal(library_generate(tiny.model, prompt, 6, unnoticed).tokens, plain)
