"""Models that a test builds: what is recorded of them, and which are refused in one line."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")

import torch
from own_models import VOCABULARY, Positional, Recurrent, Unlike, llama

from pytest_llmperf import ModelSpec, UsageError
from pytest_llmperf.models.load import LoadedModel, load
from pytest_llmperf.models.own_model import adopt, check_execution, config_of, usual_execution
from pytest_llmperf.models.quantized_weights import quantization_label


def adopted(model, **given) -> LoadedModel:
    return adopt(model, **{"name": "mine", "revision": None, "device": "cpu", **given})


def test_a_transformers_model_is_recorded_as_it_is() -> None:
    found = adopted(llama(attn_implementation="eager").to(torch.bfloat16), revision="v2")
    assert (found.title, found.name, found.revision) == ("mine", "mine", "v2")
    assert (found.dtype, found.quantization, found.attention) == ("bfloat16", "bf16", "eager")
    assert found.spec is None
    assert usual_execution(found) == "generate"


def test_a_plain_module_is_recorded_as_it_is() -> None:
    found = adopted(Recurrent().eval())
    assert (found.revision, found.dtype, found.quantization, found.attention) == (None, "float32", "fp32", "unknown")
    assert usual_execution(found) == "loop"
    assert config_of(found.model).get_text_config().vocab_size == VOCABULARY


def test_a_loaded_model_stays_what_it_is() -> None:
    loaded = load(ModelSpec("synthetic:tiny", "fp32"), "cpu")
    assert adopted(loaded, name=None) is loaded
    with pytest.raises(UsageError, match="name and revision belong to a model that the test built"):
        adopted(loaded)


@pytest.mark.parametrize("quantization", ["bf16", "fp16", "nf4", "nf4-dq", "int8", "int8-decomp"])
def test_the_label_of_a_quantized_model_is_that_of_its_layers(quantization: str) -> None:
    """For a model that the test built, nothing else tells."""
    model = load(ModelSpec("synthetic:tiny", quantization), "cpu").model
    assert quantization_label(model) == adopted(model).quantization == quantization


@pytest.mark.parametrize(
    ("make", "given", "message"),
    [
        (llama, {"name": None}, "LlamaForCausalLM has no name to compare it by: add name="),
        (llama, {"name": " "}, "name=' ': expected a non-empty string"),
        (llama, {"revision": 3}, "revision=3: expected a non-empty string"),
        (lambda: 5, {}, "found int; expected the value of the llm fixture, a transformers model or a torch module"),
        (lambda: llama().train(), {}, r"model 'mine' is in training mode: .* call model.eval\(\)"),
        (llama, {"device": "cuda:1"}, r"'mine' has 'model.embed_tokens.weight' on 'cpu', expected 'cuda:1': move it"),
        (lambda: llama().model, {}, "is a LlamaModel, which cannot generate: expected a causal language model"),
        (lambda: torch.compile(llama()), {}, "'mine' is compiled already: pass the model itself, with execution="),
        (lambda: Unlike().eval(), {}, "Unlike.forward does not take input_ids, past_key_values, use_cache"),
    ],
)
def test_what_cannot_be_measured_is_refused(make, given, message: str) -> None:
    with pytest.raises(UsageError, match=message) as found:
        adopted(make(), **given)
    assert "\n" not in str(found.value)


def test_one_layer_in_training_mode_is_found() -> None:
    """A layer that was added after eval() drops activations."""
    model = llama()
    model.model.layers[1].extra = torch.nn.Dropout()
    with pytest.raises(UsageError, match=r"in training mode in 'model\.layers\.1\.extra'"):
        adopted(model)


@pytest.mark.parametrize("execution", ["generate", "compile", "graph"])
def test_a_plain_module_has_only_a_loop(execution: str) -> None:
    found = adopted(Recurrent().eval())
    message = rf"execution '{execution}' needs a transformers model; model 'mine' is a plain Recurrent: .*'loop'"
    with pytest.raises(UsageError, match=message):
        check_execution(found, execution)
    check_execution(found, "mine")


def test_a_vocabulary_is_not_guessed() -> None:
    """Ids beyond it would end in an index error; a config settles it."""
    model = Positional().eval()
    with pytest.raises(UsageError, match=r"Positional is unknown: it has 2 embeddings and no config; set model.config"):
        config_of(model)
    model.config = {"vocab_size": 99}
    assert config_of(model).get_text_config().vocab_size == 99
