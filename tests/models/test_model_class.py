"""The class that loads a model, decided from its config."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_llmperf.errors import ModelError
from pytest_llmperf.models.model_class import auto_class

transformers = pytest.importorskip("transformers")


def config(model_type: str, architecture: str = "", **changes: Any) -> Any:
    if model_type not in transformers.CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {model_type}")
    return transformers.AutoConfig.for_model(
        model_type, **changes, **({"architectures": [architecture]} if architecture else {})
    )


@pytest.mark.parametrize(
    ("model_type", "architecture", "expected"),
    [
        ("llama", "", "AutoModelForCausalLM"),
        ("gpt2", "GPT2LMHeadModel", "AutoModelForCausalLM"),
        ("llama", "RenamedForCausalLM", "AutoModelForCausalLM"),
        ("t5", "", "AutoModelForSeq2SeqLM"),
        ("bart", "", "AutoModelForSeq2SeqLM"),
        ("marian", "MarianMTModel", "AutoModelForSeq2SeqLM"),
        ("llava", "", "AutoModelForImageTextToText"),
        ("mllama", "", "AutoModelForImageTextToText"),
        ("mllama", "MllamaForCausalLM", "AutoModelForCausalLM"),
    ],
)
def test_the_whole_model_unless_the_checkpoint_is_a_part(model_type: str, architecture: str, expected: str) -> None:
    """A decoder or text part is loaded only from a checkpoint that was saved as one."""
    assert auto_class(config(model_type, architecture), "m") is getattr(transformers, expected)


def test_a_decoder_of_its_own() -> None:
    """Bart's decoder alone, and BERT as a decoder, are causal models."""
    for model_type, changes in {"bart": {"is_encoder_decoder": False}, "bert": {"is_decoder": True}}.items():
        assert auto_class(config(model_type, **changes), "m") is transformers.AutoModelForCausalLM


@pytest.mark.parametrize(
    ("model_type", "architecture", "words"),
    [
        ("bert", "BertForMaskedLM", "(BertForMaskedLM, model type 'bert') has is_decoder=False"),
        ("distilbert", "", "(DistilBertConfig, model type 'distilbert') is no model that generates text"),
        (
            "blip-2",
            "Blip2ForConditionalGeneration",
            "(Blip2ForConditionalGeneration, model type 'blip-2') needs pixel_",
        ),
        ("whisper", "WhisperForConditionalGeneration", "is no model that generates text"),
        ("vit", "", "is no model that generates text"),
    ],
)
def test_a_model_that_does_not_generate_from_text(model_type: str, architecture: str, words: str) -> None:
    """The error names the class and the type."""
    with pytest.raises(ModelError) as caught:
        auto_class(config(model_type, architecture), "m")
    assert str(caught.value).startswith("model 'm' (")
    assert words in str(caught.value)


def test_code_of_the_model() -> None:
    """Where it may run, it says for which auto class it has a class."""
    own = config("llama", auto_map={"AutoConfig": "own.C", "AutoModelForSeq2SeqLM": "own.M"})
    assert auto_class(own, "m", trusts_code=True) is transformers.AutoModelForSeq2SeqLM
    assert auto_class(own, "m") is transformers.AutoModelForCausalLM
