"""A model's generation config: each field is ours, part of the workload, or refused."""

from __future__ import annotations

import dataclasses

import pytest
from ticking_clock import TickingClock
from transformers import GenerationConfig

from pytest_llmperf import ModelSpec
from pytest_llmperf.engines.engine import EngineRequest, Sampling
from pytest_llmperf.engines.generation_settings import IDS, OURS, REFUSED, SPECULATION, WORKLOAD, GenerationSettings
from pytest_llmperf.engines.transformers import TransformersEngine
from pytest_llmperf.errors import ExecutionUnavailable, UsageError
from pytest_llmperf.measure.generation import Plan, measure_generation
from pytest_llmperf.measure.work import count_work
from pytest_llmperf.models.load import load

PLAN = Plan(batch_size=2, input_tokens=8, output_tokens=6, execution="generate", requests=1, warmup_cap=0)
SAMPLERS = {"min_p": 0.1, "top_h": 0.4, "typical_p": 0.5, "epsilon_cutoff": 0.001, "eta_cutoff": 0.001}


@pytest.fixture(scope="module")
def loaded(model_cache):
    return load(ModelSpec("synthetic:tiny", "fp32"), "cpu")


@pytest.fixture
def model(loaded, monkeypatch):
    """The tiny model, whose generation config a test may change."""
    monkeypatch.setattr(loaded.model, "generation_config", GenerationConfig(bos_token_id=1, eos_token_id=2))
    return loaded.model


def measured(model, execution="generate", **changes):
    plan = dataclasses.replace(PLAN, execution=execution, **changes)
    return measure_generation(model, plan, device="cpu", clock=TickingClock())


def test_every_field_of_the_library_is_in_one_list():
    """A field of a newer transformers must be classified; until then it is recorded."""
    fields = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    lists = (OURS, IDS, WORKLOAD, frozenset(REFUSED))
    assert fields <= frozenset().union(*lists)
    assert sum(map(len, lists)) == len(frozenset().union(*lists))
    assert SPECULATION <= WORKLOAD


OURS_CHANGED = {
    "do_sample": True, "temperature": 0.6, **SAMPLERS, "use_cache": False, "min_new_tokens": 3, "max_time": 1e-9,
    "max_length": 3, "forced_eos_token_id": 7, "exponential_decay_length_penalty": (1, 1.5), "output_scores": True,
    "output_attentions": True, "is_assistant": True, "token_healing": True, "renormalize_logits": True,
    "begin_suppress_tokens": [5],
}  # fmt: skip


def test_fields_of_ours_change_nothing(model):
    """Not the operators, the tokens, or the workload."""
    plain = measured(model)
    vars(model.generation_config).update(OURS_CHANGED)
    assert set(OURS_CHANGED) <= OURS
    found = measured(model)
    assert (found.counts, dict(found.settings)) == (plain.counts, {})


@pytest.mark.parametrize(
    ("name", "value", "recorded"),
    [
        ("repetition_penalty", 1.3, 1.3),
        ("no_repeat_ngram_size", 2, 2),
        ("suppress_tokens", [7, 8], "[7,8]"),
        ("sequence_bias", {(3, 4): -1.5}, '{"(3, 4)":-1.5}'),
        ("cache_implementation", "static", "static"),
        ("guidance_scale", 1.5, 1.5),
        ("prefill_chunk_size", 4, 4),
    ],
)
def test_fields_of_the_workload_act_and_are_recorded(model, name, value, recorded):
    """Prefill chunks change only the prefill, whose operators are not counted."""
    plain = measured(model)
    setattr(model.generation_config, name, value)
    found = measured(model)
    assert dict(found.settings) == {name: recorded}
    assert (found.counts.figure("operators_per_token").value > plain.counts.figure("operators_per_token").value) == (
        name != "prefill_chunk_size"
    )


@pytest.mark.parametrize("name", ["repetition_penalty", "num_beams", "cache_implementation", "bad_words_ids"])
def test_the_librarys_default_is_no_setting(model, name):
    """Whether a checkpoint names it or not."""
    defaults = {"repetition_penalty": 1.0, "num_beams": 1}
    setattr(model.generation_config, name, defaults.get(name))
    assert GenerationSettings.of(model, batch_size=2).recorded == {}


def test_a_field_that_is_unknown_is_recorded(model):
    """A newer transformers may act on it."""
    model.generation_config.telepathy = {"range": 3}
    assert dict(measured(model).settings) == {"telepathy": '{"range":3}'}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("num_beams", 4, "generation_config num_beams=4: beam search is not measured: set it to 1"),
        ("num_return_sequences", 2, "num_return_sequences=2: .*: set it to 1"),
        ("stop_strings", ["stop"], r'stop_strings=\["stop"\]: a request has a fixed number of tokens: remove it'),
        ("penalty_alpha", 0.6, "penalty_alpha=0.6: contrastive search is not measured: remove it"),
        ("cache_implementation", "offloaded", "cache_implementation=offloaded .* found 'cpu': remove it"),
        ("cache_implementation", "paged", "cache_implementation=paged is continuous batching: use llmperf.serve"),
        ("cache_implementation", "telepathic", "cannot run with generation_config cache_implementation=telepathic: .*"),
    ],
)
def test_what_is_not_measured_is_refused_in_one_line(model, name, value, message):
    """The line names the field, its value, and what to do."""
    setattr(model.generation_config, name, value)
    with pytest.raises(UsageError, match=f"{message}[^\n]*$"):
        measured(model)


@pytest.mark.parametrize("name", ["prompt_lookup_num_tokens", "assistant_early_exit"])
def test_assisted_decoding_of_a_batch_is_skipped(model, name):
    """So that a matrix of batch sizes measures the one that it can."""
    setattr(model.generation_config, name, 1)
    with pytest.raises(ExecutionUnavailable, match=f"generation_config {name}=1: .* found 2: use batch_size=1"):
        measured(model)
    assert dict(measured(model, batch_size=1).settings) == {name: 1}


def test_a_bare_loop_has_no_settings(model):
    """It does not read the generation config."""
    plain = measured(model, "loop")
    vars(model.generation_config).update(repetition_penalty=1.3, num_beams=4)
    found = measured(model, "loop")
    assert (found.counts, dict(found.settings)) == (plain.counts, {})


def test_the_models_config_is_put_back(model):
    """Also after a failure."""
    config = model.generation_config
    config.repetition_penalty = 1.3
    measured(model)
    assert model.generation_config is config
    config.cache_implementation = "telepathic"
    with pytest.raises(UsageError):
        measured(model)
    assert model.generation_config is config


def test_only_a_static_cache_on_cuda_is_compiled(model):
    """There operators cannot be counted."""
    compiled = {}
    for kind in (None, "static", "quantized"):
        model.generation_config.cache_implementation = kind
        settings = GenerationSettings.of(model, batch_size=1)
        compiled[kind] = [settings.compiles(device) for device in ("cpu", "cuda:0")]
    assert compiled == {None: [False, False], "static": [False, True], "quantized": [False, False]}
    vars(model.generation_config).update(cache_implementation="static", disable_compile=True)
    assert not GenerationSettings.of(model, batch_size=1).compiles("cuda")


def test_a_single_served_request_treats_it_alike(loaded, model):
    """Samplers of the checkpoint do not act at a temperature; penalties do, and are settings of the engine."""
    engine, request = TransformersEngine(loaded), EngineRequest(prompt=(3, 4, 5), output_tokens=5)

    def operators() -> int:
        with count_work() as count:
            engine.serve_one(request, Sampling(temperature=0.6))
        return count.total

    plain = operators()
    vars(model.generation_config).update(SAMPLERS)
    assert (operators(), engine.settings) == (plain, {})
    model.generation_config.repetition_penalty = 1.3
    assert operators() > plain
    assert engine.settings == {"repetition_penalty": 1.3}
    model.generation_config.num_beams = 2
    with pytest.raises(UsageError, match="num_beams=2"):
        engine.serve_one(request, Sampling())


def test_a_served_request_whose_tokens_come_together(loaded, model):
    """The engine's own prompt lookup: gaps are unknown, and the tokens that came first are not decode."""
    model.generation_config.prompt_lookup_num_tokens = 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loaded.model.lm_head, "forward", lambda hidden: hidden.new_zeros(*hidden.shape[:2], 512))
        prompt = (5, 0, 0, 0, 0, 0)
        response = TransformersEngine(loaded).serve_one(EngineRequest(prompt=prompt, output_tokens=9), Sampling())
    assert (response.output_tokens, response.first_tokens, response.gaps_s) == (9, 4, None)
