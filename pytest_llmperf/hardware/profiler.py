"""torch's autograd profiler, without its messages on standard error."""

from __future__ import annotations

import os
from typing import Any


def profiler(**options: Any) -> Any:
    """Create a ``torch.autograd`` profiler that records events with Kineto; options are passed on."""
    from torch.autograd.profiler import profile

    # Kineto logs its stages on standard error unless this is set before its first use.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    return profile(use_kineto=True, **options)


def mark(name: str) -> None:
    """Record a host event with this name and no duration."""
    from torch.autograd.profiler import record_function

    with record_function(name):
        pass
