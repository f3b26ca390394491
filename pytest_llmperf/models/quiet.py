"""Silence progress bars, warnings and logs of the libraries while a model is loaded or measured."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

# bitsandbytes logs one warning per int8 matrix product of a bf16 model, and torch.compile logs its traces. In a pytest
# session every record is formatted and kept for the report, which would add work to the measurement.
_LOGGERS = (
    "ContinuousBatchingLogger",
    "bitsandbytes",
    "huggingface_hub",
    "torch._dynamo",
    "torch.__trace",
    "torch.utils._pytree",
    "torchao",
    "transformers",
)

# Where warnings are errors, a deprecation inside these libraries would look like a failure to load the model.
_WARNING_MODULES = r"(accelerate|bitsandbytes|huggingface_hub|peft|torch|torchao|transformers)(\.|$)"


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the libraries' progress bars, warnings, and log records below ERROR in the block."""
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
