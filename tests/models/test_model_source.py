"""Checks of a model before it is loaded, and its identity afterwards."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from pytest_llmperf.errors import UsageError
from pytest_llmperf.models.source import check_source, default_model, identify, is_local, locate
from pytest_llmperf.models.spec import ModelSpec

CONFIG = SimpleNamespace(_commit_hash="8b1c0ffee")


def refused(**keywords: str) -> str:
    """The error line for a spec."""
    with pytest.raises(UsageError) as caught:
        check_source(ModelSpec(**keywords))  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_no_model() -> None:
    """The error says how to choose a model."""
    assert refused() == "model of 'bf16' is not set: pass --llmperf-model or ModelSpec(model=...)"


def test_unknown_synthetic() -> None:
    """It is not searched elsewhere."""
    assert refused(model="synthetic:2b").startswith("model 'synthetic:2b' does not exist: expected one of")


@pytest.mark.parametrize("model", ["/no/such/folder", "./no-such-folder", "~/no-such-folder"])
def test_missing_folder(model: str) -> None:
    """A path is not looked up on the hub."""
    assert (
        refused(model=model) == f"model {model!r} does not exist: expected a folder with config.json and *.safetensors"
    )


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    """The error says that it is a file."""
    file = tmp_path / "model.gguf"
    file.touch()
    assert refused(model=str(file)).startswith(f"model {str(file)!r} is a file: expected a folder")


def test_folder_without_config(tmp_path: Path) -> None:
    """The error says what is missing."""
    assert refused(model=str(tmp_path)).startswith(f"model {str(tmp_path)!r} has no config.json")


def test_folder_without_weights(tmp_path: Path) -> None:
    """The error says what is missing."""
    (tmp_path / "config.json").write_text("{}")
    assert "has no weights: expected a folder with" in refused(model=str(tmp_path))


def test_folder_with_pickles_only(tmp_path: Path) -> None:
    """Pickled weights are refused, because loading them can run code."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").touch()
    assert "has only pickled weights (pytorch_model.bin), which can run code: expected" in refused(model=str(tmp_path))


@pytest.mark.parametrize("model", ["two words", "a/b/c", "org/na:me"])
def test_impossible_hub_name(model: str) -> None:
    """An invalid name is refused without contacting the hub."""
    pytest.importorskip("huggingface_hub")
    assert "nor a valid name on the Hugging Face hub" in refused(model=model)


@pytest.mark.parametrize("model", ["org/name", "gpt2", "meta-llama/Llama-3.2-1B"])
def test_possible_hub_name(model: str) -> None:
    """A valid name is left to the loader."""
    check_source(ModelSpec(model, revision="main"))
    assert not is_local(model)
    assert locate(ModelSpec(model)) == model


def test_a_folder_of_that_name_comes_first(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path without a dot is a folder if it exists, as in transformers."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny, tmp_path / "org" / "name")
    check_source(ModelSpec("org/name"))
    assert is_local("org/name")


@pytest.mark.parametrize("model", ["synthetic:tiny", "."])
def test_a_revision_that_would_be_ignored(model: str, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would change the test's id only."""
    monkeypatch.chdir(tiny)
    assert refused(model=model, revision="v1").startswith(f"revision 'v1' of model {model!r} would be ignored")


def test_attention_from_the_hub_needs_trust() -> None:
    """Attention from the hub is downloaded code, so it needs consent."""
    attention = "kernels-community/flash-attn2"
    assert refused(model="org/name", attention=attention).startswith(f"attention {attention!r} is code from the")
    check_source(ModelSpec("org/name", attention=attention, trust_remote_code=True))


def test_identity_of_a_synthetic_model() -> None:
    """A synthetic model is its name and recipe, wherever it is cached."""
    assert identify(ModelSpec("synthetic:32m"), CONFIG) == ("synthetic:32m", "recipe-1-seed-0")


def test_identity_of_a_hub_model() -> None:
    """The loaded commit, else the requested revision."""
    assert identify(ModelSpec("org/name", revision="main"), CONFIG) == ("org/name", "8b1c0ffee")
    assert identify(ModelSpec("org/name", revision="v1"), SimpleNamespace()) == ("org/name", "v1")
    assert identify(ModelSpec("org/name"), SimpleNamespace(_commit_hash=None)) == ("org/name", "unknown")


def test_identity_of_a_folder(tiny: Path, tmp_path: Path) -> None:
    """The name and a hash that does not depend on the location."""
    here, there = tmp_path / "here" / "mine", tmp_path / "there" / "mine"
    for folder in (here, there):
        shutil.copytree(tiny, folder)
    name, revision = identify(ModelSpec(str(here)), CONFIG)
    assert (name, len(revision)) == ("mine", len("sha256:") + 64)
    assert identify(ModelSpec(str(there)), CONFIG) == (name, revision)
    assert str(tmp_path) not in name + revision


def test_identity_of_a_relative_folder(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder has a name."""
    monkeypatch.chdir(tiny)
    assert identify(ModelSpec("."), CONFIG)[0] == tiny.name


def test_another_shape_is_another_identity(tiny: Path, tmp_path: Path) -> None:
    """A changed config or tensor layout changes the revision."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny, tmp_path / "mine")
    spec, weights = ModelSpec(str(tmp_path / "mine")), tmp_path / "mine" / "model.safetensors"
    original = identify(spec, CONFIG)
    config = tmp_path / "mine" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "rope_theta": 5.0}))
    changed_config = identify(spec, CONFIG)
    save_file({name: tensor.float() for name, tensor in load_file(weights).items()}, weights)
    assert len({original, changed_config, identify(spec, CONFIG)}) == 3


@pytest.mark.parametrize("file", ["generation_config.json", "adapter_config.json", "modeling_own.py"])
def test_files_that_decide_what_a_request_does_are_part_of_the_identity(tiny: Path, tmp_path: Path, file: str) -> None:
    """Whether they are new or changed."""
    shutil.copytree(tiny, tmp_path / "mine")
    spec, found = ModelSpec(str(tmp_path / "mine")), set()
    for text in (None, "{}", '{"repetition_penalty": 1.1}'):
        (tmp_path / "mine" / file).unlink(missing_ok=True)
        if text:
            (tmp_path / "mine" / file).write_text(text)
        found.add(identify(spec, CONFIG))
    assert len(found) == 3


def test_the_tokenizer_is_no_part_of_the_identity(tiny: Path, tmp_path: Path) -> None:
    """The ids of prompts are."""
    shutil.copytree(tiny, tmp_path / "mine")
    before = identify(ModelSpec(str(tmp_path / "mine")), CONFIG)
    (tmp_path / "mine" / "tokenizer_config.json").write_text("{}")
    assert identify(ModelSpec(str(tmp_path / "mine")), CONFIG) == before


def test_the_default_model_suits_the_device():
    """Small on a CPU, larger on an accelerator."""
    assert default_model("cpu") == "synthetic:32m"
    assert default_model("cuda:1") == "synthetic:1b"


def test_a_snapshot_of_the_hub(tmp_path: Path) -> None:
    """Its folder is named by a commit; the name stands two folders above."""
    folder = tmp_path / "models--org--name" / "snapshots" / "8b1c0ffee"
    folder.mkdir(parents=True)
    assert identify(ModelSpec(str(folder)), CONFIG) == ("org/name", "8b1c0ffee")
    assert str(ModelSpec(str(folder), "nf4")) == "name-nf4"


def adapter(folder: Path, *, base: str = "org/base", weights: str = "adapter_model.safetensors", rank: int = 4) -> str:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base, "r": rank}))
    (folder / weights).write_bytes(bytes(8))
    return str(folder)


def test_identity_of_an_adapter(tmp_path: Path) -> None:
    """Wherever its base lies; its own settings count."""
    one, two = (adapter(tmp_path / name, base=f"/{name}/base") for name in "ab")
    other = adapter(tmp_path / "c", rank=8)
    revisions = [identify(ModelSpec(folder), CONFIG)[1] for folder in (one, two, other)]
    assert revisions[0] == revisions[1] != revisions[2]


def test_an_adapter_that_cannot_be_loaded(tmp_path: Path) -> None:
    """Pickled, or without a base."""
    pickled = refused(model=adapter(tmp_path / "a", weights="adapter_model.bin"))
    assert "has only pickled weights (adapter_model.bin), which can run code: expected adapter_model.sa" in pickled
    assert "names no base model: set base_model_name_or_path" in refused(model=adapter(tmp_path / "b", base=""))


def test_how_to_load_an_adapter_that_is_none(tiny: Path) -> None:
    """It would be ignored."""
    assert refused(model=str(tiny), adapter="merged").endswith("has no adapter_config.json: leave out adapter='merged'")
