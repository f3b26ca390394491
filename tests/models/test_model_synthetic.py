"""Synthetic models: complete, reproducible, and with printable tokens."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.errors import UsageError
from pytest_llmperf.models import synthetic
from pytest_llmperf.models.synthetic import cache_folder, is_synthetic, prepare, synthetic_names
from pytest_llmperf.models.tokenizer import SPECIAL_IDS, pieces, printable_tokenizer
from pytest_llmperf.system.paths import CACHE_VARIABLE

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

FIRST_WORD = 98  # after 3 special tokens and 95 characters
TINY_VOCABULARY = 512
SIZES = (512, 8192, 128256)


@pytest.fixture(scope="module")
def tokenizer(synthetic_cache: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(prepare("synthetic:tiny"))


def test_names() -> None:
    """The known models; any name with the prefix is synthetic."""
    assert synthetic_names() == ("synthetic:tiny", "synthetic:32m", "synthetic:1b", "synthetic:8b")
    assert is_synthetic("synthetic:nope")
    assert not is_synthetic("org/synthetic")


@pytest.mark.parametrize("call", [synthetic.architecture, synthetic.revision, prepare])
def test_unknown_name(call: Any) -> None:
    """An unknown name is refused everywhere, with the known ones."""
    with pytest.raises(UsageError) as caught:
        call("synthetic:7b")
    assert str(caught.value) == (
        "model 'synthetic:7b' does not exist: expected one of synthetic:tiny, synthetic:32m, synthetic:1b, synthetic:8b"
    )


@pytest.mark.parametrize(
    ("name", "millions"), [("synthetic:32m", 33.6), ("synthetic:1b", 1235.8), ("synthetic:8b", 8030.3)]
)
def test_sizes_are_those_of_the_models_they_stand_for(name: str, millions: float) -> None:
    """Llama 3.2 1B has 1.24 and Llama 3.1 8B 8.03 billion parameters, tied ones counted once."""
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**vars(synthetic.architecture(name))))
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The variable sets the folder; the default is the user's cache folder."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    assert cache_folder() == tmp_path / "models"
    monkeypatch.delenv(CACHE_VARIABLE)
    assert "pytest-llmperf" in cache_folder().parts


def test_folder_holds_a_whole_model(tiny: Path) -> None:
    """Safetensors in bf16, a config, a tokenizer and a chat template; no pickles and no partial files."""
    from safetensors.torch import load_file

    assert {file.name for file in tiny.iterdir()} >= {"config.json", "tokenizer.json", "chat_template.jinja"}
    assert {tensor.dtype for tensor in load_file(tiny / "model.safetensors").values()} == {torch.bfloat16}
    assert {file.suffix for file in tiny.parent.iterdir() if file.is_file()} == {".lock"}
    assert not list(tiny.parent.glob("*.partial"))


def test_weights_are_seeded(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second build, over a killed one's files, writes the same bytes and keeps torch's random state."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    (tmp_path / "models" / f"{tiny.name}.partial").mkdir(parents=True)
    before = torch.get_rng_state()
    again = prepare("synthetic:tiny")
    assert torch.equal(torch.get_rng_state(), before)
    assert again.parent == tmp_path / "models"
    assert (again / "model.safetensors").read_bytes() == (tiny / "model.safetensors").read_bytes()


def test_a_failed_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No incomplete folder remains."""

    def full_disk(_shape: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(synthetic, "_random_model", full_disk)
    with pytest.raises(OSError, match="No space left"):
        prepare("synthetic:tiny")
    assert [file.suffix for file in (tmp_path / "models").iterdir()] == [".lock"]


def test_two_processes_build_one_model(tmp_path: Path, tiny: Path) -> None:
    """Concurrent processes get the same complete model."""
    code = "from pytest_llmperf.models.synthetic import prepare; print(prepare('synthetic:tiny'))"
    environment = {**os.environ, CACHE_VARIABLE: str(tmp_path)}
    command = [sys.executable, "-c", code]
    running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = {process.communicate(timeout=120)[0].strip() for process in running}
    assert [process.returncode for process in running] == [0, 0]
    assert outputs == {str(tmp_path / "models" / tiny.name)}
    assert [folder.name for folder in (tmp_path / "models").iterdir() if folder.is_dir()] == [tiny.name]
    built = tmp_path / "models" / tiny.name / "model.safetensors"
    assert built.read_bytes() == (tiny / "model.safetensors").read_bytes()


def test_greedy_decoding_counts_upwards(tiny: Path) -> None:
    """The margin is wide enough for any kernel's rounding, so the tokens of a run can be compared exactly."""
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny)
    ids = torch.arange(TINY_VOCABULARY).reshape(4, -1)
    with torch.inference_mode():
        best = model(ids).logits.float().topk(2)
    assert torch.equal(best.indices[..., 0], (ids + 1) % TINY_VOCABULARY)
    first, second = best.values.unbind(-1)
    assert (second / first).max() < 0.9


def test_some_activations_are_outliers(tiny: Path) -> None:
    """Without outliers, int8-decomp would not decompose anything."""
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny)
    seen: list[int] = []
    for layer in model.model.layers:
        layer.input_layernorm.register_forward_hook(
            lambda _module, _inputs, out: seen.append(int((out.abs() > 6).any(dim=(0, 1)).sum()))
        )
    with torch.inference_mode():
        model(torch.arange(FIRST_WORD, FIRST_WORD + 32)[None])
    assert seen == [1, 1]


@pytest.mark.parametrize("size", SIZES)
def test_pieces_are_distinct_and_printable(size: int) -> None:
    """As many pieces as ids, each of them printable ASCII."""
    texts = pieces(size)
    assert len(set(texts)) == len(texts) == size
    assert all(text and text.isascii() and text.isprintable() for text in texts)


def test_every_id_decodes_to_its_piece(tokenizer: Any) -> None:
    """In any context."""
    assert len(tokenizer) == TINY_VOCABULARY
    assert [tokenizer.decode([index]) for index in range(TINY_VOCABULARY)] == pieces(TINY_VOCABULARY)


@given(ids=st.lists(st.integers(FIRST_WORD, 8191), min_size=1, max_size=64))
def test_words_are_read_back_as_written(ids: list[int], large_tokenizer: Any) -> None:
    """A text prompt has exactly the tokens it was made from."""
    assert large_tokenizer.encode(large_tokenizer.decode(ids)) == ids


@pytest.fixture(scope="module")
def large_tokenizer() -> Any:
    return printable_tokenizer(8192, 8192)


@given(text=st.text(max_size=80))
def test_any_text_can_be_encoded(text: str, large_tokenizer: Any) -> None:
    """White space becomes a space, and non-ASCII characters a question mark."""
    ids = large_tokenizer.encode(text)
    assert all(0 <= index < 8192 for index in ids)
    assert bool(ids) == bool(text)


def test_special_tokens_and_chat_template(tokenizer: Any) -> None:
    """A chat begins with BOS and ends with the assistant's turn."""
    assert {name: getattr(tokenizer, name) for name in SPECIAL_IDS} == dict(SPECIAL_IDS)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == "<s> system: Be brief. user: Hi assistant:"
    assert tokenizer.encode(text)[0] == tokenizer.bos_token_id
