"""torch's autograd profiler, without its messages on standard error."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch


def profiler(**options: Any) -> Any:
    """Create a ``torch.autograd`` profiler that records events with Kineto; options are passed on."""
    from torch.autograd.profiler import profile

    # Kineto logs its stages on standard error unless this is set before its first use.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    return profile(use_kineto=True, **options)


@contextmanager
def recording_no_operators() -> Iterator[None]:
    """Start a profiler in the block: it will record allocations and `mark`, but no operators, which take far longer.

    torch chooses the scopes of what it records, and has no public option for it.
    """
    from torch._C._autograd import _enable_profiler
    from torch._C._profiler import RecordScope

    enable = partial(_enable_profiler, scopes={RecordScope.USER_SCOPE})  # type: ignore[call-arg]  # missing in its stub
    with patch("torch.autograd.profiler._enable_profiler", enable):
        yield


def mark(name: str) -> None:
    """Record a host event with this name and no duration."""
    from torch.autograd.profiler import record_function

    with record_function(name):
        pass
