"""Registry that keeps one model in memory: it releases the old model before loading the next."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable

from pytest_llmperf.errors import AttentionUnavailable, LlmperfError, ModelError, Unavailable, UsageError
from pytest_llmperf.models.load import LoadedModel, load
from pytest_llmperf.models.spec import ModelSpec


class ModelRegistry:
    """Loads specs on request and keeps the last loaded model.

    Attributes:
        loads: Number of load attempts: one per spec, if tests are ordered by spec.
    """

    def __init__(self, device: str, load: Callable[[ModelSpec, str], LoadedModel] = load) -> None:
        self.loads = 0
        self._device = device
        self._load = load
        self._current: LoadedModel | None = None
        self._failures: dict[ModelSpec, LlmperfError] = {}

    def get(self, spec: ModelSpec) -> LoadedModel:
        """Return the model of a spec with defaults filled in; releases the previous model if the spec differs.

        Raises:
            LlmperfError: Loading failed. Later calls raise it again without another attempt.
        """
        if spec in self._failures:
            raise self._failures[spec]
        current = self._current
        if current is None or current.closed or current.spec != spec:
            self.release()
            current = self._current = self._try_load(spec)
        return current

    def release(self) -> None:
        """Release the model and return its memory to the device and the system."""
        if self._current is not None:
            self._current.close()
            self._current = None
        free_memory(self._device)

    def _try_load(self, spec: ModelSpec) -> LoadedModel:
        self.loads += 1
        try:
            return self._load(spec, self._device)
        except LlmperfError as error:
            # A copy: the original error's traceback keeps the half-loaded model alive.
            kinds = (UsageError, AttentionUnavailable, Unavailable, ModelError)
            kind = next((kind for kind in kinds if isinstance(error, kind)), ModelError)
            self._failures[spec] = kind(str(error))
            raise


def free_memory(device: str) -> None:
    """Free unused memory on the device and the host."""
    _forget_last_failure()
    _forget_compiled()
    gc.collect()
    _empty_device_cache(device)
    _trim_heap()


def _forget_last_failure() -> None:
    """Clear the failed test's frames, which pytest keeps here until the next test runs: they keep the model alive."""
    for name in ("last_exc", "last_value", "last_traceback", "last_type"):
        vars(sys).pop(name, None)


def _forget_compiled() -> None:
    """Reset dynamo, so that every model compiles from scratch.

    Compiled code is cached on the code object of ``forward``, which all models of a class share. The next model would
    start with part of the recompile limit used, and the old model's graph pools would remain.
    """
    if "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()


def _empty_device_cache(device: str) -> None:
    if "torch" in sys.modules:
        backend = getattr(sys.modules["torch"], device.partition(":")[0], None)
        getattr(backend, "empty_cache", lambda: None)()


def _trim_heap() -> None:
    """Return freed heap memory to the system: glibc keeps it, and it would count in the next model's RSS."""
    if sys.platform == "linux":
        getattr(ctypes.CDLL(None), "malloc_trim", lambda _pad: 0)(0)
