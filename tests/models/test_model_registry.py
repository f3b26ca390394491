"""The registry keeps one model at a time and loads each spec once."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from pytest_llmperf.errors import MissingDependency, ModelError, UsageError
from pytest_llmperf.models.load import LoadedModel
from pytest_llmperf.models.model_registry import ModelRegistry, free_memory
from pytest_llmperf.models.spec import ModelSpec

A, B = ModelSpec("org/a"), ModelSpec("org/b")


class Weights:
    """Stands for a model; it refers to itself, as modules do, so only the collector frees it."""

    def __init__(self) -> None:
        self.itself = self


class Loader:
    """A ``load`` that tracks live models and refuses to load a second one."""

    def __init__(self) -> None:
        self.models: list[weakref.ref[Weights]] = []

    def __call__(self, spec: ModelSpec, device: str) -> LoadedModel:
        assert self.alive == 0, "two models in memory"
        model = Weights()
        self.models.append(weakref.ref(model))
        return LoadedModel(
            spec=spec,
            model=model,
            tokenizer=None,
            name=str(spec.model),
            revision="1",
            quantization=spec.quantization,
            dtype="bfloat16",
            attention="sdpa",
            device=device,
        )

    @property
    def alive(self) -> int:
        return sum(model() is not None for model in self.models)


@pytest.fixture
def loader() -> Loader:
    return Loader()


@pytest.fixture
def no_last_failure() -> Iterator[None]:
    names = ("last_type", "last_value", "last_traceback", "last_exc")
    before = {name: getattr(sys, name) for name in names if hasattr(sys, name)}
    yield
    for name in names:
        vars(sys).pop(name, None)
    vars(sys).update(before)


def test_equal_specs_load_once(loader: Loader) -> None:
    """Specs are compared by value."""
    registry = ModelRegistry("cpu", load=loader)
    assert registry.get(A) is registry.get(ModelSpec("org/a"))
    assert registry.loads == 1


def test_the_old_model_dies_first(loader: Loader) -> None:
    """The old model is freed before the next load, even if a test holds its handle."""
    registry = ModelRegistry("cpu", load=loader)
    handle = registry.get(A)
    assert registry.get(B).spec == B
    assert (registry.loads, loader.alive) == (2, 1)
    with pytest.raises(ModelError, match="was released"):
        _ = handle.model


def test_the_old_model_dies_after_a_failing_test(loader: Loader, no_last_failure: None) -> None:
    """The failed test's frames, which pytest keeps, hold the model; they are cleared."""

    def failing_test(handle: LoadedModel) -> None:
        model = handle.model
        raise AssertionError(model)

    registry = ModelRegistry("cpu", load=loader)
    try:
        failing_test(registry.get(A))
    except AssertionError as error:
        sys.last_type, sys.last_value, sys.last_traceback = type(error), error, error.__traceback__
        sys.last_exc = error  # type: ignore[attr-defined]
    registry.get(B)
    assert not {"last_type", "last_value", "last_traceback", "last_exc"} & set(vars(sys))


def test_release(loader: Loader) -> None:
    """The model is freed; releasing again does nothing."""
    registry = ModelRegistry("cpu", load=loader)
    registry.get(A)
    registry.release()
    registry.release()
    assert loader.alive == 0


def test_a_closed_handle_is_not_handed_out(loader: Loader) -> None:
    """If a test closes its model, the next test gets a new one."""
    registry = ModelRegistry("cpu", load=loader)
    registry.get(A).close()
    assert not registry.get(A).closed
    assert registry.loads == 2


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ModelError("no such model"), ModelError),
        (UsageError("no such model"), UsageError),
        (MissingDependency("x", extra="models", purpose="y"), UsageError),
    ],
)
def test_a_failure_is_remembered(error: Exception, kind: type[Exception]) -> None:
    """Every test of the spec fails with the same message, after one attempt."""

    def fail(_spec: ModelSpec, _device: str) -> LoadedModel:
        raise error

    registry = ModelRegistry("cpu", load=fail)
    for _ in range(3):
        with pytest.raises(kind) as caught:
            registry.get(A)
        assert str(caught.value) == str(error)
    assert registry.loads == 1


def test_a_failure_holds_nothing() -> None:
    """The stored error is a copy without the traceback, which holds the half-loaded model."""
    half_loaded: list[weakref.ref[Weights]] = []

    def fail(_spec: ModelSpec, _device: str) -> LoadedModel:
        model = Weights()
        half_loaded.append(weakref.ref(model))
        raise ModelError("half loaded")

    registry = ModelRegistry("cpu", load=fail)
    with pytest.raises(ModelError) as caught:
        registry.get(A)
    del caught
    gc.collect()
    assert half_loaded[0]() is None


def test_a_failure_leaves_room_for_others(loader: Loader) -> None:
    """Other specs load; the failed one stays failed."""

    def load(spec: ModelSpec, device: str) -> LoadedModel:
        if spec == A:
            raise ModelError("no such model")
        return loader(spec, device)

    registry = ModelRegistry("cpu", load=load)
    for _ in range(2):
        with pytest.raises(ModelError):
            registry.get(A)
        assert registry.get(B).spec == B
    assert registry.loads == 2


def test_a_real_model_dies(tiny: Any) -> None:
    """A used model leaves nothing in memory, compiled or not."""
    torch = pytest.importorskip("torch")
    registry = ModelRegistry("cpu")
    model = registry.get(ModelSpec("synthetic:tiny")).model
    with torch.inference_mode():
        torch.compile(model, backend="eager")(torch.arange(100, 108)[None])
    dead = weakref.ref(model)
    del model
    registry.get(ModelSpec("synthetic:tiny", "int8"))
    assert dead() is None
    assert registry.loads == 2


@pytest.mark.parametrize("device", ["cpu", "cuda:0", "unheard-of"])
def test_freeing_memory_is_safe_anywhere(device: str) -> None:
    """A device without a cache, or an unused one, is no error."""
    free_memory(device)
