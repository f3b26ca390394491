"""The attention implementations: which names there are, and what became of the one that was asked for."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import Any

from pytest_llmperf.errors import ModelError, UsageError
from pytest_llmperf.models.spec import ModelSpec

_BUILT_IN = ("eager", "sdpa", "flash_attention_2", "flex_attention")
"""What people ask for. The library knows some more, which are looked up when one is named."""


def check_attention(spec: ModelSpec) -> None:
    """Check that an attention implementation of that name exists, whether or not it runs here.

    Raises:
        UsageError: There is none, or it is code on the Hugging Face hub that nobody consented to.
    """
    name = spec.attention
    if name is None or name in _BUILT_IN:
        return
    if "/" in name:
        _check_consent(spec)
    elif name not in (known := known_attentions()):
        raise UsageError(f"attention {name!r} is unknown: expected one of {', '.join(known)}")


def known_attentions() -> list[str]:
    """The names that the installed transformers knows."""
    if find_spec("transformers") is None:
        return [*_BUILT_IN]
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    return list(dict.fromkeys([*_BUILT_IN, *ALL_ATTENTION_FUNCTIONS.valid_keys()]))


def attention_of(model: Any) -> str:
    """The implementation that a loaded model really has."""
    return getattr(model.config, "_attn_implementation", None) or "unknown"


def check_loaded(spec: ModelSpec, model: Any) -> None:
    """Refuse an attention that the library replaced in silence.

    Raises:
        ModelError: The model has another one than was asked for.
    """
    if spec.attention not in (None, attention_of(model)):
        raise ModelError(
            f"model {spec.model!r} was asked for attention {spec.attention!r} and got {attention_of(model)!r}: "
            "install what the first needs, or ask for the second"
        )


def cannot_run_here(spec: ModelSpec, error: Exception) -> bool:
    """Whether a load failed for want of what the attention needs: its package, a device, or the model's support."""
    asked = spec.attention is not None and isinstance(error, ImportError | ValueError)
    return asked and re.search(r"attn|attention", str(error), re.IGNORECASE) is not None


def _check_consent(spec: ModelSpec) -> None:
    """The library takes a name with a slash for a kernel on the hub: compiled code to download and run."""
    if not spec.trust_remote_code:
        raise UsageError(
            f"attention {spec.attention!r} is code from the Hugging Face hub: expected a built-in one such as eager or "
            "sdpa, or trust_remote_code=True"
        )
