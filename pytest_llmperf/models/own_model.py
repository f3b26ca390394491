"""Models that a test or its fixture builds: check what was given, and make a handle as the ``llm`` fixture's."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from pytest_llmperf.errors import UsageError
from pytest_llmperf.models.attention import attention_of
from pytest_llmperf.models.load import LoadedModel, dtype_of, misplaced
from pytest_llmperf.models.quantized_weights import quantization_label
from pytest_llmperf.models.structure import structure_digest
from pytest_llmperf.validation import require_text

TAKEN = ("input_ids", "past_key_values", "use_cache")
"""Keywords of ``forward`` that a greedy loop needs."""


def adopt(given: Any, *, name: str | None, revision: str | None, device: str) -> LoadedModel:
    """Return the handle of a model: the ``llm`` fixture's as it is, or one made for a model that the test built.

    Args:
        given: the ``llm`` fixture's value, a transformers model, or a torch module with its forward signature.
        name: identifies a model that the test built.
        revision: identifies its weights, if it is known.
        device: the run's device, where the model must be.

    Raises:
        UsageError: the object is no model or cannot be measured as it is, its name is missing, or a model that was
            loaded here is given another name.
    """
    import torch

    __tracebackhide__ = True
    if isinstance(given, LoadedModel):
        if name is not None or revision is not None:
            raise UsageError(
                f"name and revision belong to a model that the test built: leave them out for {given.title!r}"
            )
        return given
    if not isinstance(given, torch.nn.Module):
        raise UsageError(
            f"found {type(given).__name__}; expected the value of the llm fixture, a transformers model or a torch "
            "module"
        )
    _check_names(given, name, revision)
    _check_fit(given, f"model {name!r}", device)
    return LoadedModel(
        spec=None,
        model=given,
        tokenizer=None,
        name=str(name),
        revision=revision,
        quantization=quantization_label(given),
        dtype=dtype_of(given),
        attention=attention_of(given),
        device=device,
        structure=structure_digest(given),
    )


def usual_execution(loaded: LoadedModel) -> str:
    """The default execution of a model: ``generate``, or ``loop`` for a torch module that has none."""
    return "generate" if can_generate(loaded.model) else "loop"


def check_execution(loaded: LoadedModel, execution: str) -> None:
    """Check that a model has what an execution of that name needs.

    Raises:
        UsageError: a plain torch module has no ``generate``, or no config to make a static cache of.
    """
    __tracebackhide__ = True
    if execution in ("generate", "compile", "graph"):
        check_generates(loaded, f"execution {execution!r}")


def can_generate(model: Any) -> bool:
    """Whether a model has the ``generate`` of transformers."""
    return hasattr(model, "generate") and hasattr(model, "generation_config")


def check_generates(loaded: LoadedModel, purpose: str) -> None:
    """Check that a model has the ``generate`` and the config of transformers.

    Raises:
        UsageError: it is a plain torch module; ``purpose`` says what needs more than that.
    """
    __tracebackhide__ = True
    if not can_generate(loaded.model):
        raise UsageError(
            f"{purpose} needs a transformers model; model {loaded.name!r} is a plain {type(loaded.model).__name__}: "
            "measure it with execution='loop'"
        )


def config_of(model: Any) -> Any:
    """A model's config; for a torch module without a transformers config, one with what is known of it.

    Raises:
        UsageError: its vocabulary size is unknown.
    """
    config = getattr(model, "config", None)
    if hasattr(config, "get_text_config"):
        return config
    known = dict(config) if isinstance(config, Mapping) else vars(config) if hasattr(config, "__dict__") else {}
    return _PlainConfig(**{**known, "vocab_size": known.get("vocab_size") or _vocabulary(model)})


class _PlainConfig(SimpleNamespace):
    """Config of a plain torch module."""

    def get_text_config(self) -> _PlainConfig:
        return self


def _vocabulary(model: Any) -> int:
    """The number of rows of the only embedding of a module: of several, which one holds tokens is unknown."""
    import torch

    __tracebackhide__ = True
    found = [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    if len(found) != 1:
        raise UsageError(
            f"the vocabulary size of {type(model).__name__} is unknown: it has {len(found)} embeddings and no config; "
            "set model.config to an object with vocab_size"
        )
    return found[0].num_embeddings


def _check_names(model: Any, name: str | None, revision: str | None) -> None:
    __tracebackhide__ = True
    if name is None:
        raise UsageError(f"{type(model).__name__} has no name to compare it by: add name=, such as name='my-model'")
    require_text("name", name)
    if revision is not None:
        require_text("revision", revision)


def _check_fit(model: Any, named: str, device: str) -> None:
    """Check that a model can be measured where and as it is."""
    __tracebackhide__ = True
    if hasattr(model, "_orig_mod"):
        raise UsageError(f"{named} is compiled already: pass the model itself, with execution='compile'")
    if wrong := misplaced(model, device):
        raise UsageError(f"{named} has {wrong}: move it with model.to({device!r}); llmperf.device is the run's device")
    training = next((name for name, module in model.named_modules() if module.training), None)
    if training is not None:
        where = f" in {training!r}" if training else ""
        raise UsageError(f"{named} is in training mode{where}: expected evaluation mode: call model.eval()")
    if not getattr(model, "can_generate", lambda: True)():
        raise UsageError(
            f"{named} is a {type(model).__name__}, which cannot generate: expected a causal language model"
        )
    if not can_generate(model):
        _check_signature(model, named)


def _check_signature(model: Any, named: str) -> None:
    __tracebackhide__ = True
    parameters = inspect.signature(model.forward).parameters
    takes_any = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    lacking = [name for name in TAKEN if name not in parameters]
    if lacking and not takes_any:
        raise UsageError(
            f"{named}: {type(model).__name__}.forward does not take {', '.join(lacking)}: "
            f"expected the keywords {', '.join(TAKEN)}, as models of transformers have them"
        )
