"""Attention implementations: check a requested name, and what the loaded model uses."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import Any

from pytest_llmperf.errors import ModelError, UsageError
from pytest_llmperf.models.spec import ModelSpec

_BUILT_IN = ("eager", "sdpa", "flash_attention_2", "flex_attention")
"""Common implementations. The library knows more, which are looked up when requested."""


def check_attention(spec: ModelSpec) -> None:
    """Check that the requested attention implementation exists, whether or not it runs here.

    Raises:
        UsageError: It is unknown, or is code on the Hugging Face hub without consent to run it.
    """
    name = spec.attention
    if name is None or name in _BUILT_IN:
        return
    if "/" in name:
        _check_consent(spec)
    elif name not in (known := known_attentions()):
        raise UsageError(f"attention {name!r} is unknown: expected one of {', '.join(known)}")


def known_attentions() -> list[str]:
    """Names known to the installed transformers."""
    if find_spec("transformers") is None:
        return [*_BUILT_IN]
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    return list(dict.fromkeys([*_BUILT_IN, *ALL_ATTENTION_FUNCTIONS.valid_keys()]))


def attention_of(model: Any) -> str:
    """The attention implementation that a loaded model uses."""
    return getattr(getattr(model, "config", None), "_attn_implementation", None) or "unknown"


def check_loaded(spec: ModelSpec, model: Any) -> None:
    """Check that the library did not silently replace the requested attention.

    Raises:
        ModelError: The model uses another implementation.
    """
    if spec.attention not in (None, attention_of(model)):
        raise ModelError(
            f"model {spec.model!r} uses attention {attention_of(model)!r}, expected {spec.attention!r}: "
            f"install the packages that {spec.attention!r} needs, or request {attention_of(model)!r}"
        )


def cannot_run_here(spec: ModelSpec, error: Exception) -> bool:
    """Whether loading failed because of the attention: a missing package or device, or no support by the model."""
    asked = spec.attention is not None and isinstance(error, ImportError | ValueError)
    return asked and re.search(r"attn|attention", str(error), re.IGNORECASE) is not None


def _check_consent(spec: ModelSpec) -> None:
    """Require consent to hub code: for a name with a slash, the library downloads and runs a compiled kernel."""
    if not spec.trust_remote_code:
        raise UsageError(
            f"attention {spec.attention!r} is code from the Hugging Face hub: expected a built-in one such as eager or "
            "sdpa, --llmperf-trust-remote-code or trust_remote_code=True"
        )
