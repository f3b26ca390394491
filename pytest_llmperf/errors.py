"""Everything this package raises on purpose.

::

    LlmperfError
    ├── UsageError              a wrong option, marker, spec or argument: known before anything is measured
    │   └── MissingDependency   an extra that is not installed
    ├── BaselineError           a baseline file that cannot be read, trusted or written
    ├── ModelError              a model that cannot be loaded
    │   └── AttentionUnavailable  with the attention that was asked for
    ├── MeasurementError        a measurement that must not become a number
    │   └── ExecutionUnavailable  with the execution that was asked for
    └── Unavailable             what AttentionUnavailable and ExecutionUnavailable are too: their tests are skipped

Every message is one line that names the thing, what was found, what was expected and how to mend it.
"""

from __future__ import annotations


class LlmperfError(Exception):
    """The root: catch this to catch all that the package raises on purpose."""


class UsageError(LlmperfError):
    """A wrong option, marker keyword, model spec or argument. Ends collection with exit code 4."""


class MissingDependency(UsageError):  # noqa: N818  # says what happened, as KeyboardInterrupt does
    """An optional dependency that is needed here and not installed."""

    def __init__(self, package: str, *, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {package}, which is not installed: pip install 'pytest-llmperf[{extra}]'")


class BaselineError(LlmperfError):
    """A baseline file that is truncated, edited by hand, of another schema or not writable."""


class ModelError(LlmperfError):
    """A model that does not exist, cannot be loaded or is not where it was asked to be."""


class MeasurementError(LlmperfError):
    """A measurement that must not become a number: too few tokens, a silent fall-back, NaN."""


class Unavailable(LlmperfError):  # noqa: N818  # says what is the case
    """What was asked for exists and cannot run here. Skips its tests with the reason, and is never replaced."""


class AttentionUnavailable(Unavailable, ModelError):  # noqa: N818  # the same
    """An attention implementation that exists and cannot run here, or not with this model."""


class ExecutionUnavailable(Unavailable, MeasurementError):  # noqa: N818  # the same
    """A way to decode that exists and cannot run here, or not with this model."""
