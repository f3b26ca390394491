"""The digest of a model's structure: what changes it, and that running the model does not."""

from __future__ import annotations

import pytest

from pytest_llmperf.engines.executions.execution import library_generate, unnoticed
from pytest_llmperf.engines.executions.greedy_loop import greedy_loop
from pytest_llmperf.engines.executions.static_cache import tokens_of_loop
from pytest_llmperf.engines.executions.torch_compile import Compile
from pytest_llmperf.hardware.clock import HostClock
from pytest_llmperf.models.load import LoadedModel, as_it_is, load
from pytest_llmperf.models.spec import ModelSpec
from pytest_llmperf.models.structure import structure_digest

torch = pytest.importorskip("torch")

PROMPT = torch.arange(20, 32).view(2, 6)


def tiny(quantization: str = "fp32") -> LoadedModel:
    return load(ModelSpec("synthetic:tiny", quantization), "cpu")


@pytest.mark.parametrize("quantization", ["bf16", "nf4", "nf4-dq", "int8"])
def test_running_a_model_does_not_change_it(quantization: str) -> None:
    """The first forward of bitsandbytes layers moves or packs their weights."""
    loaded = tiny(quantization)
    with torch.inference_mode():
        library_generate(loaded.model, PROMPT, 3, unnoticed)
        greedy_loop(loaded.model, PROMPT, 3, unnoticed)
    found = as_it_is(loaded)
    assert found.settings == {}
    assert found.quantization == quantization


def test_compiling_a_model_does_not_change_it() -> None:
    loaded = tiny()
    with torch.inference_mode(), Compile(backend="eager").open(loaded.model, PROMPT, 4, HostClock()) as prepared:
        prepared.request(4, unnoticed)
    assert as_it_is(loaded).settings == {}


def test_hooks_and_data_do_not_change_it() -> None:
    """The structure is what a model is made of, not what it has learned."""
    loaded = tiny()
    handle = loaded.model.register_forward_hook(lambda *_: None)
    with torch.no_grad():
        loaded.model.lm_head.weight.zero_()
    assert as_it_is(loaded).settings == {}
    handle.remove()


def added(model) -> None:
    model.model.layers[0].adapter = torch.nn.Linear(4, 4)


def replaced(model) -> None:
    model.model.layers[0].mlp = torch.nn.Linear(64, 64)


def cast(model) -> None:
    model.half()


def shortened(model) -> None:
    del model.model.layers[1]


@pytest.mark.parametrize("change", [added, replaced, cast, shortened])
def test_a_change_is_part_of_the_workload(change) -> None:
    loaded = tiny()
    change(loaded.model)
    found = as_it_is(loaded)
    assert found.settings == {"changed": structure_digest(loaded.model)}
    assert len(found.settings["changed"]) == 12
    assert (found.quantization, found.dtype) == (("fp16", "float16") if change is cast else ("fp32", "float32"))


def test_other_code_for_the_same_weights_is_compared() -> None:
    """It is what a test is for: a faster layer must not be another workload."""
    loaded = tiny()

    class Faster(type(loaded.model.model.layers[0].mlp)):
        """It would compute the same in less time."""

    loaded.model.model.layers[0].mlp.__class__ = Faster
    assert as_it_is(loaded).settings == {}


def test_another_attention_is_recorded_by_its_name() -> None:
    loaded = tiny()
    assert loaded.attention == "sdpa"
    loaded.model.set_attn_implementation("eager")
    found = as_it_is(loaded)
    assert (found.attention, found.settings) == ("eager", {})


def test_the_same_change_has_the_same_digest_in_another_process() -> None:
    """It depends on names, shapes and dtypes only: two loads of a model agree."""
    one, two = tiny(), tiny()
    for loaded in (one, two):
        added(loaded.model)
    assert as_it_is(one).settings == as_it_is(two).settings
    assert torch.equal(tokens_of_loop(one.model, PROMPT, 3), tokens_of_loop(two.model, PROMPT, 3))
