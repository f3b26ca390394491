"""torch's profiler, without its own words on standard error."""

from __future__ import annotations

import os
from typing import Any


def profiler(**options: Any) -> Any:
    """A profiler of ``torch.autograd``, which records events by Kineto; options are its own."""
    from torch.autograd.profiler import profile

    # It reports its stages on standard error unless told otherwise before its first use.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    return profile(use_kineto=True, **options)


def mark(name: str) -> None:
    """An event of that name and of no length, on the host."""
    from torch.autograd.profiler import record_function

    with record_function(name):
        pass
