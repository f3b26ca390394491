"""Exception classes of the package.

::

    LlmperfError
    ├── UsageError              a wrong option, marker, spec or argument, found before anything is measured
    │   └── MissingDependency   an extra is not installed
    ├── BaselineError           a baseline file cannot be read or written, or is invalid
    ├── ModelError              a model cannot be loaded
    │   └── AttentionUnavailable  with the requested attention
    ├── MeasurementError        a measurement is invalid
    │   └── ExecutionUnavailable  with the requested execution
    └── Unavailable             second base of AttentionUnavailable and ExecutionUnavailable: their tests are skipped

Every message is one line that names the object, what was found, what was expected and how to fix it.
"""

from __future__ import annotations


class LlmperfError(Exception):
    """Base class of all exceptions that the package raises on purpose."""


class UsageError(LlmperfError):
    """A wrong option, marker keyword, model spec or argument. Ends collection with exit code 4."""


class MissingDependency(UsageError):  # noqa: N818  # says what happened, as KeyboardInterrupt does
    """An optional dependency is needed but not installed."""

    def __init__(self, package: str, *, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {package}, which is not installed: pip install 'pytest-llmperf[{extra}]'")


class BaselineError(LlmperfError):
    """A baseline file is truncated, edited by hand, of another schema version or not writable."""


class ModelError(LlmperfError):
    """A model does not exist, cannot be loaded or is not on the requested device."""


class MeasurementError(LlmperfError):
    """A measurement is invalid: too few tokens, a silent fall-back, NaN."""


class Unavailable(LlmperfError):  # noqa: N818  # says what is the case
    """A requested feature exists but cannot run here: its tests are skipped with the reason, without a fall-back."""


class AttentionUnavailable(Unavailable, ModelError):  # noqa: N818  # the same
    """An attention implementation exists but cannot run here, or not with this model."""


class ExecutionUnavailable(Unavailable, MeasurementError):  # noqa: N818  # the same
    """A decode execution exists but cannot run here, or not with this model."""
