"""The zoo itself: entries build, weigh what was counted by hand, and look at their context."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from zoo import ZOO, Entry

from pytest_llmperf.models.weights import weights_bytes

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

COUNTED = [entry for entry in ZOO.values() if entry.weights is not None and entry.family != "checkpoint"]
SEVERAL = ("llama", "gemma3_text", "mistral", "qwen3_moe", "deepseek_v3", "mamba2", "bamba", "lfm2", "t5", "bart")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    return tmp_path_factory.mktemp("zoo")


def loaded(entry: Entry, folder: Path, dtype: Any) -> Any:
    return entry.load(folder, dtype)


def test_forty_architectures() -> None:
    """Every family and kind that the zoo is for is there."""
    architectures = {entry.model_type for entry in ZOO.values()}
    assert len(architectures) >= 40
    assert {entry.family for entry in ZOO.values()} == {
        "causal", "mixture", "recurrent", "hybrid", "vision-language", "encoder-decoder", "encoder", "checkpoint",
    }  # fmt: skip


@pytest.mark.parametrize("entry", COUNTED, ids=lambda entry: entry.name)
def test_weights_are_as_counted_by_hand(entry: Entry, folder: Path) -> None:
    model = loaded(entry, folder, torch.bfloat16)
    assert sum(parameter.numel() for parameter in model.parameters()) == entry.parameters
    assert weights_bytes(model) == entry.weights


@pytest.mark.parametrize("name", SEVERAL)
def test_the_context_decides_what_comes_next(name: str, folder: Path) -> None:
    """Otherwise a decode that forgets its context would produce the right tokens."""
    model, prompt = loaded(ZOO[name], folder, torch.float32), torch.arange(40, 56).reshape(2, 8)
    other = prompt.clone()
    other[:, :6] += 20
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    one, two = (model.generate(ids, attention_mask=torch.ones_like(ids), **options)[:, -6:] for ids in (prompt, other))
    assert not torch.equal(one, two)


def test_the_same_checkpoint_each_time(tmp_path: Path) -> None:
    one, two = (ZOO["llama"].build(tmp_path / name) / "model.safetensors" for name in "ab")
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("name", [name for name, entry in ZOO.items() if entry.family == "checkpoint"])
def test_every_kind_of_checkpoint_builds(name: str, tmp_path: Path) -> None:
    if "stored" in name:
        pytest.importorskip("bitsandbytes")
    built = {file.name for file in ZOO[name].build(tmp_path / name).rglob("*")}
    assert built & {"model.safetensors", "pytorch_model.bin"}
    assert "config.json" in built
