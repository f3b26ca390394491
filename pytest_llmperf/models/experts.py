"""Mixtures of experts: whether a model has any, and how it runs them."""

from __future__ import annotations

import re
from typing import Any

from pytest_llmperf.models.own_model import config_of

_COUNT = re.compile(r"(moe_)?(num|n)_(\w+_)?experts|(moe_)?experts?_num")
"""Names of settings with the number of experts."""


def has_experts(model: Any) -> bool:
    """Whether a model routes its tokens to experts, by the counts in its config or the names of its modules."""
    settings = vars(config_of(model).get_text_config())
    counts = (value for name, value in settings.items() if _COUNT.fullmatch(name))
    return any(isinstance(count, int) and count > 1 for count in counts) or any(
        name.rpartition(".")[2] == "experts" for name, _ in model.named_modules()
    )


def experts_implementation(model: Any) -> str:
    """The implementation that transformers runs the experts with; ``unknown`` if it does not say."""
    return getattr(config_of(model).get_text_config(), "_experts_implementation", None) or "unknown"
