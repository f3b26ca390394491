"""Silence from the libraries underneath while a model is loaded or measured."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

# bitsandbytes logs one warning per int8 matrix product of a bf16 model. Inside a pytest session every one of them is
# formatted and kept for the report: that is a second workload beside the one that is measured.
# So is all that torch.compile traces.
_LOGGERS = (
    "ContinuousBatchingLogger",
    "bitsandbytes",
    "huggingface_hub",
    "torch._dynamo",
    "torch.__trace",
    "transformers",
)

# Where warnings are errors, a deprecation inside these would be taken for a model that cannot be loaded.
_WARNING_MODULES = r"(accelerate|bitsandbytes|huggingface_hub|torch|transformers)(\.|$)"


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, no warnings and no log records below ERROR from the libraries; restored on leaving."""
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", module=_WARNING_MODULES)
        for name in _LOGGERS:
            stack.enter_context(_level(logging.getLogger(name), logging.ERROR))
        stack.enter_context(_no_progress_bars())
        yield


@contextmanager
def _level(logger: logging.Logger, level: int) -> Iterator[None]:
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    from transformers.utils import logging as transformers_logging

    before = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if before:
            transformers_logging.enable_progress_bar()
