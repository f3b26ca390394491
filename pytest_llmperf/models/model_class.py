"""Which class of transformers loads a model: decided from its config, not by trying."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from typing import Any

from pytest_llmperf.errors import ModelError

_CAUSAL = "AutoModelForCausalLM"
_ENCODER_DECODER = "AutoModelForSeq2SeqLM"
_VISION_LANGUAGE = "AutoModelForImageTextToText"
_MAPPINGS = {
    _CAUSAL: "MODEL_FOR_CAUSAL_LM_MAPPING",
    _ENCODER_DECODER: "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING",
    _VISION_LANGUAGE: "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING",
}
_INPUTS = frozenset({"self", "input_ids"})


def auto_class(config: Any, model: str, *, trusts_code: bool = False) -> Any:
    """The auto class that loads a whole model of this config for generation from text alone.

    Some configs have several classes: a vision-language model and its text part, or an encoder-decoder model and its
    decoder. The checkpoint's own class is preferred, then the whole model.

    Args:
        config: the model's ``PretrainedConfig``.
        model: its name, for errors.
        trusts_code: whether code that comes with the model may run.

    Raises:
        ModelError: the model cannot generate from text alone; the message names its type and class.
    """
    import transformers

    if trusts_code and (own := _in_remote_code(config)):
        return getattr(transformers, own)
    classes = dict(_classes(config))
    saved_as = _saved_as(config)
    name = next((name for name, found in classes.items() if found.__name__ == saved_as), next(iter(classes), None))
    if name is None:
        raise ModelError(_refusal(config, model, "is no model that generates text"))
    if is_encoder(config):
        raise ModelError(_refusal(config, model, "has is_decoder=False, so it encodes text and does not generate"))
    if missing := _needs(classes[name]):
        raise ModelError(_refusal(config, model, f"needs {missing} besides text"))
    return getattr(transformers, name)


def _refusal(config: Any, model: str, why: str) -> str:
    kind = f"{_saved_as(config) or type(config).__name__}, model type {config.model_type!r}"
    return f"model {model!r} ({kind}) {why}: expected a causal, encoder-decoder or vision-language model"


def _saved_as(config: Any) -> str:
    return next(iter(config.architectures or ()), "")


def _in_remote_code(config: Any) -> str | None:
    """The auto class for which the model's own code has a class."""
    provided = getattr(config, "auto_map", None) or {}
    return next((name for name in _MAPPINGS if name in provided), None)


def _classes(config: Any) -> Iterator[tuple[str, Any]]:
    """The auto classes that know a config, those of whole models first, with the class that each loads."""
    from transformers.models.auto import modeling_auto

    whole_first = (_VISION_LANGUAGE, _CAUSAL, _ENCODER_DECODER)
    for name in (_ENCODER_DECODER, _VISION_LANGUAGE) if config.is_encoder_decoder else whole_first:
        mapping = getattr(modeling_auto, _MAPPINGS[name])
        if type(config) in mapping:
            found = mapping[type(config)]
            yield name, found[0] if isinstance(found, tuple) else found


def is_encoder(config: Any) -> bool:
    """Whether a model of both kinds, such as BERT, is set up to encode: its attention looks at later tokens."""
    from transformers.models.auto import modeling_auto as auto

    has_decoder = type(config) in auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING  # its class for text sets what it needs
    is_either = type(config) in auto.MODEL_FOR_MASKED_LM_MAPPING and not has_decoder
    return is_either and not getattr(config, "is_decoder", False)


def _needs(model: type[Any]) -> str:
    """What a model requires besides token ids; empty if nothing."""
    if not hasattr(model, "generate"):
        return "a loop of its own"
    return next(iter([*_required(model.forward), *_required(model.generate), *_lacking_ids(model)]), "")


def _required(function: Any) -> Iterable[str]:
    parameters = inspect.signature(function).parameters.values()
    required = (one for one in parameters if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD)
    return [one.name for one in required if one.name not in _INPUTS]


def _lacking_ids(model: type[Any]) -> Iterable[str]:
    return () if "input_ids" in inspect.signature(model.forward).parameters else ("other input",)
