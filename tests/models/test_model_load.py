"""Loading models: as requested or with a one-line error, silently, and without leftovers of failed loads."""

from __future__ import annotations

import gc
import json
import logging
import shutil
import subprocess
import sys
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_llmperf.errors import LlmperfError, MissingDependency, ModelError, UsageError
from pytest_llmperf.models import attention
from pytest_llmperf.models import load as loading
from pytest_llmperf.models.load import LoadedModel, load, prepare
from pytest_llmperf.models.quantization import QUANTIZATIONS, STORED
from pytest_llmperf.models.quiet import quiet
from pytest_llmperf.models.spec import ModelSpec

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TINY = ModelSpec("synthetic:tiny")
DTYPES = {"fp16": "float16", "fp32": "float32", "int8": "float16", "int8-decomp": "float16"}


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """A copy of a local model that a test may damage."""
    return shutil.copytree(tiny, tmp_path / "mine")


def failure(spec: ModelSpec, kind: type[LlmperfError] = ModelError) -> str:
    """The error line of loading a spec."""
    with pytest.raises(kind) as caught:
        load(spec, "cpu")
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("quantization", sorted(QUANTIZATIONS.keys() - {STORED}))
def test_every_quantization_loads_and_generates(quantization: str) -> None:
    """All that run on a CPU produce the requested tokens."""
    if quantization.startswith("torchao"):
        pytest.importorskip("torchao")
        if QUANTIZATIONS[quantization].capability:
            pytest.skip("its kernels need a GPU")
    loaded = load(ModelSpec("synthetic:tiny", quantization), "cpu")
    prompt = torch.arange(200, 216).reshape(2, 8)
    with torch.inference_mode(), quiet():
        tokens = loaded.model.generate(
            prompt, attention_mask=torch.ones_like(prompt), min_new_tokens=4, max_new_tokens=4, do_sample=False
        )
    assert tokens[:, 8:].tolist() == [[208, 209, 210, 211], [216, 217, 218, 219]]
    assert loaded.dtype == DTYPES.get(quantization, "bfloat16")


def test_what_a_loaded_model_tells() -> None:
    """It has the actual name, revision, dtype, attention and device, and a short repr."""
    loaded = load(TINY, "cpu")
    assert (loaded.spec, loaded.device, loaded.attention) == (TINY, "cpu", "sdpa")
    assert (loaded.name, loaded.revision) == ("synthetic:tiny", "recipe-1-seed-0")
    assert loaded.tokenizer is not None
    assert loaded.model.training is False
    assert "LlamaForCausalLM" not in repr(loaded)


def test_local_folder(copy: Path) -> None:
    """A folder loads like a hub model and shows its name, not its path."""
    loaded = load(ModelSpec(str(copy), attention="eager"), "cpu")
    assert (loaded.name, loaded.attention) == ("mine", "eager")
    assert loaded.revision.startswith("sha256:")


def test_tokenizer_is_optional(copy: Path) -> None:
    """A model without tokenizer files can still be measured on token ids."""
    for file in copy.glob("tokenizer*"):
        file.unlink()
    assert load(ModelSpec(str(copy)), "cpu").tokenizer is None


def test_handle_lets_go() -> None:
    """A closed handle keeps nothing alive, and using it raises an error."""
    loaded = load(TINY, "cpu")
    model = weakref.ref(loaded.model)
    closed = [loaded.closed]
    for _ in range(2):
        loaded.close()
        closed.append(loaded.closed)
    gc.collect()
    assert closed == [False, True, True]
    assert model() is None
    with pytest.raises(ModelError, match=r"model 'synthetic:tiny-bf16' was released to make room for the next one"):
        _ = loaded.model
    with pytest.raises(AttributeError, match="'LoadedModel' object has no attribute 'modle'"):
        _ = loaded.modle  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("spec", "kind", "expected"),
    [
        (ModelSpec(), UsageError, "model of 'bf16' is not set"),
        (ModelSpec("/no/such"), UsageError, "model '/no/such' does not exist"),
        (ModelSpec("synthetic:no"), UsageError, "model 'synthetic:no' does not exist"),
        (ModelSpec("synthetic:tiny", attention="fast"), UsageError, "attention 'fast' is unknown: expected one of"),
    ],
)
def test_what_cannot_be_loaded(spec: ModelSpec, kind: type[LlmperfError], expected: str) -> None:
    """Each error is one line that names the model."""
    assert expected in failure(spec, kind)


def test_unreachable_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what else to pass."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = failure(ModelSpec("nobody/nothing"))
    assert message.startswith(
        "model 'nobody/nothing' is neither a local folder nor reachable on the Hugging Face hub ("
    )
    assert message.endswith(
        "pass a folder, set HF_TOKEN for a private or gated model, or HF_HUB_OFFLINE=1 to use the cache"
    )


def test_pickles_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's advice to load pickles is not repeated."""

    def no_safetensors(*_args: object, **_options: object) -> None:
        raise OSError("no file named model.safetensors. Please do not set `use_safetensors=True`.")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", no_safetensors)
    message = failure(ModelSpec("org/name"))
    assert message.startswith("model 'org/name' has no safetensors weights: pickled weights can run code")
    assert "use_safetensors" not in message


def test_broken_weights(copy: Path) -> None:
    """The error has the library's reason in one line."""
    (copy / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "could not be loaded as 'bf16': " in failure(ModelSpec(str(copy)))


def test_missing_weights(copy: Path) -> None:
    """Missing weights are an error instead of being initialized randomly."""
    from safetensors.torch import load_file, save_file

    lacking = "model.layers.1.mlp.up_proj.weight"
    weights = load_file(copy / "model.safetensors")
    del weights[lacking]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert f"lacks 1 of its weights, the first {lacking!r}" in failure(ModelSpec(str(copy)))


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the extra that installs accelerate."""
    monkeypatch.setattr(loading, "find_spec", lambda name: None if name == "accelerate" else object())
    assert "pip install 'pytest-llmperf[models]'" in failure(TINY, MissingDependency)


def test_attention_is_never_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has the requested and the actual attention."""
    monkeypatch.setattr(attention, "attention_of", lambda _model: "eager")
    assert failure(ModelSpec("synthetic:tiny", attention="sdpa")).startswith(
        "model 'synthetic:tiny' uses attention 'eager', expected 'sdpa'"
    )


def test_every_tensor_is_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the error names the first tensor elsewhere."""
    monkeypatch.setattr(loading, "_is_on", lambda _found, device: device != "cpu")
    assert failure(TINY) == "model 'synthetic:tiny' has 'model.embed_tokens.weight' on 'cpu', expected 'cpu'"


@pytest.mark.parametrize(
    ("found", "asked", "expected"),
    [("cuda:0", "cuda", True), ("cuda:1", "cuda:1", True), ("cuda:0", "cuda:1", False), ("cpu", "cuda", False)],
)
def test_device_names(found: str, asked: str, *, expected: bool) -> None:
    """A device without an index matches any of its kind."""
    assert loading._is_on(torch.device(found), asked) is expected


def test_a_quantized_checkpoint(copy: Path) -> None:
    """It loads in its own quantization only."""
    load(ModelSpec("synthetic:tiny", "nf4"), "cpu").model.save_pretrained(copy)
    loaded = load(ModelSpec(str(copy), "nf4"), "cpu")
    assert (loaded.dtype, loaded.model.is_loaded_in_4bit) == ("bfloat16", True)
    for asked in ("bf16", "int8"):
        assert failure(ModelSpec(str(copy), asked)).endswith(
            f"is stored as 'nf4' and cannot be converted to {asked!r}: request 'nf4' or 'stored' "
            "(--llmperf-quantization=stored)"
        )


def test_another_tools_quantization(copy: Path) -> None:
    """An unknown format is not reported as bf16."""
    config = json.loads((copy / "config.json").read_text()) | {
        "quantization_config": {"quant_method": "gptq", "bits": 4}
    }
    (copy / "config.json").write_text(json.dumps(config))
    assert "is stored as 'gptq' and cannot be converted to 'bf16'" in failure(ModelSpec(str(copy)))


def test_a_failed_load_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error does not keep the half-loaded model alive."""
    models: list[weakref.ref[Any]] = []

    def reject(model: Any, _device: str) -> str:
        models.append(weakref.ref(model))
        return "all of it elsewhere"

    monkeypatch.setattr(loading, "misplaced", reject)
    with pytest.raises(ModelError, match="has all of it elsewhere") as caught:
        load(TINY, "cpu")
    gc.collect()
    assert models[0]() is None, caught.value


def test_out_of_memory_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's error is shortened to its first line and kept as the cause."""

    def out_of_memory(*_args: object, **_options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nlong advice")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", out_of_memory)
    with pytest.raises(ModelError) as caught:
        load(TINY, "cpu")
    assert str(caught.value) == "model 'synthetic:tiny' could not be loaded as 'bf16': CUDA out of memory."
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)


def test_an_unwritable_cache_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A synthetic model that cannot be built is a ModelError."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("LLMPERF_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match=r"'synthetic:tiny' could not be loaded as 'bf16': .*Not a directory"):
        prepare(TINY, "cpu")


@pytest.mark.parametrize("quantization", ["bf16", "int8"])
def test_loading_is_silent(
    quantization: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Neither loading nor an int8 product under quiet writes or logs anything."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load(ModelSpec("synthetic:tiny", quantization), "cpu")
    with torch.inference_mode(), quiet():
        loaded.model(torch.arange(100, 108)[None])
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


def test_quiet_restores() -> None:
    """Log levels and progress bars are restored, after an error too."""
    logger = logging.getLogger("bitsandbytes")

    def state() -> tuple[int, bool]:
        return logger.level, transformers.utils.logging.is_progress_bar_enabled()

    def fail_quietly() -> None:
        with quiet():
            assert state() == (logging.ERROR, False)
            raise KeyError

    before = state()
    with pytest.raises(KeyError):
        fail_quietly()
    assert state() == before


def test_quiet_leaves_the_users_warnings() -> None:
    """Only the libraries' own warnings are dropped."""
    with quiet(), pytest.warns(UserWarning, match="mine"):
        warnings.warn("mine", UserWarning, stacklevel=1)


def test_trust_is_off_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every from_pretrained gets trust_remote_code and revision of the spec, and safetensors only."""
    seen: list[dict[str, Any]] = []

    def record(kind: type, result: Callable[[], Any]) -> None:
        def from_pretrained(_source: str, **options: Any) -> Any:
            seen.append(options)
            return result()

        monkeypatch.setattr(kind, "from_pretrained", from_pretrained)

    model = load(TINY, "cpu").model
    record(transformers.AutoConfig, transformers.LlamaConfig)
    record(transformers.AutoModelForCausalLM, lambda: (model, {"missing_keys": set(), "unexpected_keys": set()}))
    record(transformers.AutoTokenizer, lambda: None)
    loaded = load(ModelSpec("org/name", revision="v1"), "cpu")
    assert isinstance(loaded, LoadedModel)
    assert [options["trust_remote_code"] for options in seen] == [False] * 4
    assert [options["revision"] for options in seen] == ["v1"] * 4
    assert [options for options in seen if options.get("use_safetensors")] == [seen[2]]


def test_a_first_load_imports_nothing() -> None:
    """Otherwise a run's first model would seem to load fifty times slower."""
    code = """
import sys
from pytest_llmperf import ModelSpec
from pytest_llmperf.models.load import load, prepare
for quantization in ("fp32", "nf4"):
    spec = ModelSpec("synthetic:tiny", quantization)
    prepare(spec, "cpu")
    before = set(sys.modules)
    load(spec, "cpu")
    print([name for name in sys.modules if name not in before])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "[]"]


SPREAD = """
from types import SimpleNamespace

import pytest
import torch


@pytest.mark.parametrize("llm", ["fp32"], indirect=True)
@pytest.mark.parametrize("measure", ["generate", "naive", "offline"])
def test_spread(llm, llmperf, measure, monkeypatch):
    tensors = [SimpleNamespace(device=torch.device(name)) for name in ("cuda:1", "cuda:0", "cpu", "cuda:1")]
    monkeypatch.setattr(llm.model, "parameters", lambda: iter(tensors))
    llmperf.generate(llm) if measure == "generate" else llmperf.serve(llm, scheduler=measure, requests=2)
"""


def test_a_model_that_a_test_spread_over_several_devices_is_refused(project) -> None:
    """Whatever the guards: time and memory would be those of one device."""
    project.write(SPREAD)
    result = project.run()
    result.assert_outcomes(failed=3)
    told = "error: *: MeasurementError: the model is on cuda:0, cuda:1; expected one device, *"
    result.stdout.fnmatch_lines([told] * 3)
