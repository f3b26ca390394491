"""Skip mark for tests that need continuous batching in transformers."""

from __future__ import annotations

import pytest
import transformers

SERVES = hasattr(getattr(transformers, "ContinuousBatchingConfig", None), "auto_switch_to_flash")

needs_continuous_batching = pytest.mark.skipif(
    not SERVES, reason=f"transformers {transformers.__version__} has no usable continuous batching"
)
