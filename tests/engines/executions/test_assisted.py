"""Assisted decoding: prompt lookup and draft models, compared with what a hand counts."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from ticking_clock import TickingClock

from pytest_llmperf import Assisted, Lookup, ModelSpec
from pytest_llmperf.engines.executions import assisted
from pytest_llmperf.engines.executions.assisted import assistance_figures
from pytest_llmperf.errors import ExecutionUnavailable, ModelError, UsageError
from pytest_llmperf.measure.generation import Plan, measure_generation
from pytest_llmperf.measure.work import count_work
from pytest_llmperf.models.load import load
from pytest_llmperf.models.weights import weights_bytes

TINY = ModelSpec("synthetic:tiny", "fp32")


@pytest.fixture(scope="module")
def tiny(model_cache):
    return load(TINY, "cpu")


@pytest.fixture
def zeros(tiny, monkeypatch):
    """The tiny model, for which token 0 is the most likely one after anything."""
    monkeypatch.setattr(tiny.model.lm_head, "forward", lambda hidden: hidden.new_zeros(*hidden.shape[:2], 512))
    return tiny


def measured(loaded, execution, **changes):
    base = {"batch_size": 1, "input_tokens": 4, "output_tokens": 41, "requests": 2, "warmup_cap": 1}
    plan = Plan(execution=execution, **base | changes)
    return measure_generation(loaded.model, plan, device="cpu", clock=TickingClock())


def figures(found):
    return {figure.metric: figure.value for figure in found.figures}


# The prompt does not repeat. So two steps propose nothing. Then 0 is followed by one 0, by two, and by three.
STEPS = (1, 1, 2, 3, *[4] * 8, 2)
PROPOSED = 1 + 2 + 3 * 9


def test_prompt_lookup_is_measured_as_a_hand_counts(zeros):
    """A clock that advances by 1 ms at each stamp: 12 ms for the 40 tokens after the first."""
    found = measured(zeros, Lookup(tokens=3))
    assert sum(STEPS) == 41
    assert [times.tokens for times in found.requests] == [STEPS] * 2
    assert [times.tpot_ms for times in found.requests] == [12 / 40] * 2
    assert [times.itl_ms for times in found.requests] == [[]] * 2
    assert figures(found) == {
        "acceptance_share": (41 - 13) / PROPOSED,
        "tokens_per_step": 41 / 13,
        "tokens_unlike_loop": 0,
    }


def test_operators_are_by_token(zeros):
    """Not by step: all that follow the first token, by the 40 tokens."""
    prompt = torch.tensor([[5, 6, 7, 8]])
    with Lookup(tokens=3).open(zeros.model, prompt, 41, TickingClock()) as prepared, torch.inference_mode():
        seen = []
        with count_work() as count:
            prepared.request(41, lambda came=1, /: seen.append((count.total, came)))
    assert tuple(came for _, came in seen) == STEPS
    found = measured(zeros, Lookup(tokens=3))
    assert found.counts.figure("operators_per_token").value == pytest.approx((seen[-1][0] - seen[0][0]) / 40, rel=0.02)


def test_a_draft_model_that_is_always_right(tiny):
    """Four proposed tokens and one more in each step. It is part of the workload, and is released."""
    drafts = []

    def keep(spec, device):
        drafts.append(load(spec, device))
        return drafts[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assisted, "load", keep)
        found = measured(tiny, Assisted(TINY, tokens=4, confidence=0))
    assert found.requests[0].tokens == (*[5] * 8, 1)
    assert found.requests[0].tpot_ms == 8 / 36
    assert figures(found) == {
        "acceptance_share": 1.0,
        "tokens_per_step": 41 / 9,
        "tokens_unlike_loop": 0,
        "assistant_weights_bytes": weights_bytes(tiny.model),
    }
    assert found.settings == {
        "assistant": "synthetic:tiny",
        "assistant_revision": tiny.revision,
        "assistant_quantization": "fp32",
        "assistant_dtype": "float32",
        "assistant_attention": tiny.attention,
        "confidence_adapts": False,
    }
    assert [draft.closed for draft in drafts] == [True]


def test_a_draft_model_leaves_memory_with_the_measurement(tiny, monkeypatch):
    """Also if the measurement fails."""
    alive = []

    def keep(spec, device):
        draft = load(spec, device)
        alive.append(weakref.ref(draft.model))
        return draft

    monkeypatch.setattr(assisted, "load", keep)
    measured(tiny, Assisted(TINY))
    monkeypatch.setattr(tiny.model, "generate", lambda *_arguments, **_options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        measured(tiny, Assisted(TINY))
    gc.collect()
    assert [reference() for reference in alive] == [None, None]


def test_a_draft_model_that_is_not_sure_proposes_less(tiny):
    """Random weights are never sure: it stops after the first token, and nothing is wrong about it."""
    found = figures(measured(tiny, Assisted("synthetic:tiny", confidence=0.99)))
    assert found["tokens_per_step"] <= 2
    assert found["tokens_unlike_loop"] == 0


def test_the_models_own_settings_are_kept_without_its_assistance(zeros, monkeypatch):
    """The execution decides how it is assisted."""
    changed = {"repetition_penalty": 1.0001, "prompt_lookup_num_tokens": 9}
    for name, value in changed.items():
        monkeypatch.setattr(zeros.model.generation_config, name, value)
    found = measured(zeros, Lookup(tokens=3))
    assert found.settings == {"repetition_penalty": 1.0001}


def test_nothing_proposed_has_no_rate():
    """One forward of 4 positions, then one per token."""
    rate, per_step = assistance_figures([4, 1, 1], input_tokens=4, output_tokens=3)
    assert (rate.value, rate.reason, per_step.value) == (None, "no token was proposed", 1.0)


@pytest.mark.parametrize("execution", [Lookup(), Assisted("synthetic:tiny")], ids=lambda one: one.name)
def test_a_batch_is_skipped(tiny, execution):
    """The line says what to do."""
    with pytest.raises(ExecutionUnavailable, match=f"{execution.name!r} takes one sequence, .* 2: use batch_size=1"):
        measured(tiny, execution, batch_size=2)


def test_a_model_that_cannot_be_assisted_is_skipped(tiny, monkeypatch):
    """With transformers' reason."""
    monkeypatch.setattr(type(tiny.model), "_is_stateful", True)
    with pytest.raises(ExecutionUnavailable, match=r"execution 'lookup' cannot run with LlamaForCausalLM: .*stateful"):
        measured(tiny, "lookup")


def test_a_model_with_an_encoder_is_skipped(tiny, monkeypatch):
    """What a forward proposes is not counted there."""
    monkeypatch.setattr(tiny.model.config, "is_encoder_decoder", True)
    with pytest.raises(ExecutionUnavailable, match="'lookup' takes models without an encoder, found LlamaForCausalLM"):
        measured(tiny, "lookup")


def test_another_vocabulary_is_refused(tiny, monkeypatch):
    """Before anything is generated."""
    monkeypatch.setattr(tiny.model.config, "vocab_size", 600)
    with pytest.raises(
        UsageError, match="assistant synthetic:tiny has a vocabulary of 512 tokens, the model one of 600"
    ):
        measured(tiny, Assisted("synthetic:tiny"))


def test_a_draft_model_that_cannot_be_loaded(tiny, tmp_path):
    """The error is that of a model."""
    with pytest.raises((ModelError, UsageError), match=r"model '.*none' does not exist"):
        measured(tiny, Assisted(str(tmp_path / "none")))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Lookup(tokens=0), "lookup: tokens=0: expected a whole number of at least 1"),
        (lambda: Lookup(ngram=1.5), "lookup: ngram=1.5"),
        (lambda: Assisted("x", tokens=0), "assisted: tokens=0"),
        (lambda: Assisted("x", confidence=1), "assisted: confidence=1: expected a probability"),
        (lambda: Assisted(ModelSpec()), "assisted: the assistant names no model"),
        (lambda: Assisted(""), "model is '', expected a non-empty string"),
    ],
)
def test_settings_are_checked(make, message):
    """When the execution is made."""
    with pytest.raises(UsageError, match=message):
        make()
