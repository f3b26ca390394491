"""One model in memory at a time: the old one dies before the next one is loaded."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable

from pytest_llmperf.errors import AttentionUnavailable, LlmperfError, ModelError, UsageError
from pytest_llmperf.models.load import LoadedModel, load
from pytest_llmperf.models.spec import ModelSpec


class ModelRegistry:
    """Loads each spec when it is asked for and keeps the last one.

    Attributes:
        loads: How often a load was tried. One a spec, if tests are ordered by spec.
    """

    def __init__(self, device: str, load: Callable[[ModelSpec, str], LoadedModel] = load) -> None:
        self.loads = 0
        self._device = device
        self._load = load
        self._current: LoadedModel | None = None
        self._failures: dict[ModelSpec, LlmperfError] = {}

    def get(self, spec: ModelSpec) -> LoadedModel:
        """The model of a spec whose defaults are filled in; releases the one before it, if it is another.

        Raises:
            LlmperfError: It cannot be loaded. That is remembered, and raised again without trying again.
        """
        if spec in self._failures:
            raise self._failures[spec]
        current = self._current
        if current is None or current.closed or current.spec != spec:
            self.release()
            current = self._current = self._try_load(spec)
        return current

    def release(self) -> None:
        """Drop the model and give its memory back to the device and the system."""
        if self._current is not None:
            self._current.close()
            self._current = None
        free_memory(self._device)

    def _try_load(self, spec: ModelSpec) -> LoadedModel:
        self.loads += 1
        try:
            return self._load(spec, self._device)
        except LlmperfError as error:
            # A copy: the error itself holds its traceback, and with it whatever was loaded so far.
            kinds = (UsageError, AttentionUnavailable, ModelError)
            kind = next((kind for kind in kinds if isinstance(error, kind)), ModelError)
            self._failures[spec] = kind(str(error))
            raise


def free_memory(device: str) -> None:
    """Free what nobody uses any more, on the device and on the host."""
    _forget_last_failure()
    _forget_compiled()
    gc.collect()
    _empty_device_cache(device)
    _trim_heap()


def _forget_last_failure() -> None:
    """After a failing test, pytest keeps its frames here until the next test runs, and they hold the model."""
    for name in ("last_exc", "last_value", "last_traceback", "last_type"):
        vars(sys).pop(name, None)


def _forget_compiled() -> None:
    """Let every model compile from scratch.

    Compiled code is kept by the code object of ``forward``, which models of one class share: the next ones would start
    on what is left of the recompile limit. Graph pools of the old model would stay, too.
    """
    if "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()


def _empty_device_cache(device: str) -> None:
    if "torch" in sys.modules:
        backend = getattr(sys.modules["torch"], device.partition(":")[0], None)
        getattr(backend, "empty_cache", lambda: None)()


def _trim_heap() -> None:
    """Glibc keeps freed memory for itself, which would count in the next model's resident size."""
    if sys.platform == "linux":
        getattr(ctypes.CDLL(None), "malloc_trim", lambda _pad: 0)(0)
