"""The execution ``loop`` decodes every kind of model as ``generate`` does, or says why it cannot."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from zoo import ZOO

from pytest_llmperf.engines.conditions import measuring_conditions
from pytest_llmperf.engines.executions.execution import library_generate, unnoticed
from pytest_llmperf.engines.executions.greedy_loop import GreedyLoop, greedy_loop
from pytest_llmperf.errors import ExecutionUnavailable, UsageError
from pytest_llmperf.hardware.clock import HostClock
from pytest_llmperf.measure.generation import Plan, measure_generation

NO_CACHE = "openai-gpt"
DECODED = [
    entry
    for entry in ZOO.values()
    if entry.family not in ("encoder", "checkpoint") and not entry.refused and entry.name != NO_CACHE
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("zoo")


def loaded(entry, folder):
    model = entry.load(folder, torch.float32)
    model.generation_config.forced_eos_token_id = None  # BART's last token
    return model


def prompt(batch_size=2):
    return torch.arange(40, 40 + 12 * batch_size).reshape(batch_size, 12)


def tokens_of_loop(model, output_tokens=5):
    with measuring_conditions(), GreedyLoop().open(model, prompt(), output_tokens, HostClock()) as prepared:
        return prepared.request(output_tokens, unnoticed).tokens


@pytest.mark.parametrize("entry", DECODED, ids=lambda entry: entry.name)
def test_the_tokens_are_those_of_generate(entry, folder):
    """Whatever the cache is and is called, and whether positions are counted from it or not."""
    model, seen = loaded(entry, folder), []
    with measuring_conditions():
        expected = library_generate(model, prompt(), 5, lambda count=1: seen.append(count)).tokens
    assert expected.shape == (2, len(seen)) == (2, 5)
    assert torch.equal(tokens_of_loop(model), expected)


def test_one_output_token_is_a_prefill(folder):
    model = loaded(ZOO["bamba"], folder)
    assert torch.equal(tokens_of_loop(model, 1), tokens_of_loop(model)[:, :1])


def test_a_model_without_a_cache_is_unavailable(folder):
    """``generate`` passes the whole sequence in each step, and a loop must not do less."""
    model = loaded(ZOO[NO_CACHE], folder)
    with pytest.raises(ExecutionUnavailable, match=r"OpenAIGPTLMHeadModel: its forward returns no cache.*'generate'$"):
        tokens_of_loop(model)


class NextNumber(torch.nn.Module):
    """Predicts the number after the last token; its cache is what ``keep`` makes of the cache and the new tokens."""

    def __init__(self, keep):
        super().__init__()
        self.keep = keep

    def forward(self, input_ids, past_key_values=None, use_cache=False):
        logits = torch.nn.functional.one_hot(input_ids + 1, 128).float()
        return SimpleNamespace(logits=logits, past_key_values=self.keep(past_key_values, input_ids))


class Tokens:
    """A cache that holds the tokens themselves."""

    def __init__(self, tokens):
        self.tokens = tokens

    def get_seq_length(self):
        return self.tokens.shape[1]


def kept(cache, ids):
    return Tokens(ids if cache is None else torch.cat([cache.tokens, ids], dim=1))


def test_a_module_of_the_users_decodes():
    """It needs no config and no ``generate``."""
    assert tokens_of_loop(NextNumber(kept)).tolist() == [[52, 53, 54, 55, 56], [64, 65, 66, 67, 68]]


@pytest.mark.parametrize(
    ("keep", "reason"),
    [
        (lambda _cache, _ids: None, "its forward returns no cache"),
        (lambda _cache, ids: Tokens(ids), "its cache holds 1 tokens after 3"),
        (lambda cache, ids: cache or Tokens(ids), "its cache holds 2 tokens after 3"),
    ],
    ids=["none", "forgets", "never-grows"],
)
def test_a_cache_that_lacks_tokens_is_unavailable(keep, reason):
    """Otherwise each token would be decoded without its context, in less time than with it."""
    with pytest.raises(ExecutionUnavailable, match=f"^execution 'loop' cannot decode NextNumber: {reason}, so tokens"):
        tokens_of_loop(NextNumber(keep))


@pytest.mark.parametrize("name", ["bert", "roberta"])
@pytest.mark.parametrize("execution", ["generate", "loop"])
def test_an_encoder_is_refused(name, execution, folder):
    """Its tokens attend to later ones, so nothing that decodes with a cache is right."""
    plan = Plan(batch_size=2, input_tokens=4, output_tokens=3, execution=execution, requests=1, warmup_cap=0)
    with pytest.raises(UsageError, match=f"^{ZOO[name].refused} is an encoder"):
        measure_generation(loaded(ZOO[name], folder), plan, device="cpu", clock=HostClock())


def test_positions_are_prepared_before_the_request(folder):
    """A step is a forward and an argmax: its position is a view of a tensor that exists already."""
    model, calls = loaded(ZOO["llama"], folder), []
    model.register_forward_pre_hook(lambda _module, _args, options: calls.append(options), with_kwargs=True)
    with measuring_conditions(), GreedyLoop().open(model, prompt(), 4, HostClock()) as prepared:
        calls.clear()
        prepared.request(4, unnoticed)
    assert "position_ids" not in calls[0]
    assert [int(options["position_ids"]) for options in calls[1:]] == [12, 13, 14]
    storages = {options["position_ids"].untyped_storage().data_ptr() for options in calls[1:]}
    assert len(storages) == 1


def test_the_reason_is_told_to_the_user(project, folder):
    """The test is skipped, and nothing is measured instead."""
    loaded(ZOO[NO_CACHE], folder)
    project.write("""
        import pytest

        @pytest.mark.parametrize("llm", ["fp32"], indirect=True)
        def test_loop(llm, llmperf):
            llmperf.generate(llm, execution="loop")
    """)
    result = project.run("-rs", f"--llmperf-model={folder / NO_CACHE}")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*cannot decode OpenAIGPTLMHeadModel: its forward returns no cache*"])


def test_the_function_prepares_what_is_missing(folder):
    """Callers may pass positions; without them, each request makes its own."""
    model = loaded(ZOO["bamba"], folder)
    with measuring_conditions():
        assert torch.equal(greedy_loop(model, prompt(), 5, unnoticed).tokens, tokens_of_loop(model))
