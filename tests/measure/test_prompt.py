"""Prompts of text, chat and random ids: parsing, tokenization and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers

from pytest_llmperf import ModelSpec
from pytest_llmperf.errors import UsageError
from pytest_llmperf.measure.prompt import RANDOM, Prompt, digest, prompt_ids, random_prompt
from pytest_llmperf.models.load import load

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello <b>there</b>"}]


@pytest.fixture(scope="module")
def tiny(model_cache):
    return load(ModelSpec("synthetic:tiny", "fp32"), "cpu")


def ids(prompt, loaded, **changes):
    arguments = {"batch_size": 3, "input_tokens": 7, "seed": 0} | changes
    return prompt_ids(prompt, loaded.model.config, loaded.tokenizer, **arguments)


def test_random_ids_have_the_length_that_is_asked_for(tiny):
    """Without a tokenizer."""
    assert ids(RANDOM, SimpleNamespace(model=tiny.model, tokenizer=None)).shape == (3, 7)


def test_a_text_has_its_own_length_and_each_sequence_has_the_same(tiny):
    """As tokenized by the model's tokenizer."""
    found = ids(Prompt.of("Hello there"), tiny)
    assert found.tolist() == [tiny.tokenizer("Hello there")["input_ids"]] * 3


def test_a_chat_goes_through_the_template(tiny):
    """With the generation prompt and the template's special tokens."""
    (row, *_) = ids(Prompt.of(MESSAGES), tiny).tolist()
    text = tiny.tokenizer.decode(row)
    assert text == "<s> system: Be brief. user: Hello <b>there</b> assistant:"
    assert row.count(tiny.tokenizer.bos_token_id) == 1


def test_from_the_command_line(tmp_path, monkeypatch):
    """Every form, including files."""
    monkeypatch.chdir(tmp_path)
    Path("words.txt").write_text("Grüße: 1")
    Path("chat.json").write_text(json.dumps(MESSAGES))
    assert Prompt.parse("random").is_random
    assert Prompt.parse("text:a: b").text == "a: b"
    assert Prompt.parse("file:words.txt") == Prompt.of(Path("words.txt")) == Prompt(text="Grüße: 1")
    assert Prompt.parse("chat:chat.json") == Prompt.of(MESSAGES)
    assert [role for role, _ in Prompt.parse("chat").chat] == ["system", "user"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "prompt '': expected random, text:WORDS"),
        ("text:", "prompt 'text:': expected random"),
        ("hello", "prompt 'hello': expected random"),
        ("file:absent.txt", "prompt file absent.txt: No such file"),
        ("file:.", "prompt file .: Is a directory"),
        ("chat:broken.json", "prompt file broken.json: line 1: "),
        ("chat:empty.json", 'empty.json: expected a list of {"role"'),
        ("chat:other.json", "other.json: found {'role': 'user'}, expected a list"),
        ("ids:empty.json", "empty.json: expected a list of sequences of one length, each a list of token ids, such as"),
        ("ids:other.json", "other.json: expected a list of sequences"),
        ("ids:uneven.json", "uneven.json: found sequences of 1 to 2 ids, expected a list of sequences of one length"),
        ("ids:broken.json", "prompt file broken.json: line 1: "),
        ("chat:number.json", "number.json: found {'role': 'user', 'content': 1}, expected"),
    ],
)
def test_what_is_no_prompt(text, expected, tmp_path, monkeypatch):
    """The error quotes it."""
    monkeypatch.chdir(tmp_path)
    files = {"broken": "[", "empty": "[]", "other": '[{"role": "user"}]', "number": '[{"role": "user", "content": 1}]'}
    files["uneven"] = "[[1, 2], [3]]"
    for name, words in files.items():
        Path(f"{name}.json").write_text(words)
    with pytest.raises(UsageError) as caught:
        Prompt.parse(text)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_given_ids_are_the_prompt(tiny, tmp_path):
    """A batch takes the first sequences, from a test or from a file."""
    given = [[5, 6, 7], [8, 9, 10], [11, 12, 13]]
    (tmp_path / "ids.json").write_text(json.dumps(given))
    for prompt in (Prompt.of(given), Prompt.parse(f"ids:{tmp_path / 'ids.json'}")):
        found = prompt_ids(prompt, tiny.model.config, None, batch_size=2, input_tokens=64, seed=0)
        assert found.tolist() == given[:2]
        assert not prompt.is_random


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([[5, 6]], "a prompt of 1 sequences for a batch of 2: expected at least as many"),
        ([[5, 6], [7, 10**6]], "the prompt has token id 1000000: expected ids below the vocabulary of 512"),
        ([[5, 6], [7]], "prompt: found sequences of 1 to 2 ids"),
        ([[5, -1]], "prompt: expected a list of sequences of one length"),
        ([[5, True]], "prompt: expected a list of sequences"),
        ([[5], []], "prompt: expected a list of sequences"),
        (["words"], "prompt: expected a list of sequences"),
    ],
)
def test_ids_that_are_no_prompt(tiny, given, message):
    """They are refused before anything runs."""
    with pytest.raises(UsageError, match=message):
        prompt_ids(Prompt.of(given), tiny.model.config, None, batch_size=2, input_tokens=64, seed=0)


def test_an_empty_text_is_no_prompt():
    """Neither is a text without tokens."""
    with pytest.raises(UsageError, match="expected some text"):
        Prompt.of("")
    silent = SimpleNamespace(model=SimpleNamespace(config=None), tokenizer=lambda _text: {"input_ids": []})
    with pytest.raises(UsageError, match="the prompt has no tokens"):
        ids(Prompt.of(" "), silent)


def test_what_the_model_lacks_is_named(tiny):
    """A tokenizer, or a chat template."""
    with pytest.raises(UsageError, match="the model has no tokenizer"):
        ids(Prompt.of("Hello"), SimpleNamespace(model=tiny.model, tokenizer=None))
    plain = SimpleNamespace(chat_template=None)
    with pytest.raises(UsageError, match="no chat template: use a text prompt"):
        ids(Prompt.of(MESSAGES), SimpleNamespace(model=tiny.model, tokenizer=plain))


def test_prompts_are_seeded_and_free_of_special_tokens(tiny):
    """The same seed gives the same ids; none of them ends the generation."""
    config = tiny.model.config
    one, two, other = (random_prompt(config, batch_size=3, input_tokens=50, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert digest(one) == digest(two) != digest(other)
    assert one.shape == (3, 50)
    assert not {config.bos_token_id, config.eos_token_id} & set(one.flatten().tolist())


def test_random_prompts_are_free_of_what_stands_for_an_image():
    """Such a token without its image is not text."""
    config = transformers.LlavaConfig(
        text_config={"model_type": "llama", "vocab_size": 8, "bos_token_id": 0, "eos_token_id": 1}, image_token_index=3
    )
    prompt = random_prompt(config, batch_size=2, input_tokens=100, seed=0)
    assert set(prompt.flatten().tolist()) == {2, 4, 5, 6, 7}


def test_why_there_is_no_tokenizer():
    """Words cannot be turned into ids without one; random ids need none."""
    with pytest.raises(UsageError, match=r"no tokenizer for a text prompt \(KeyError: 'a'\): use a random prompt"):
        prompt_ids(
            Prompt.of("words"), None, None, batch_size=1, input_tokens=1, seed=0, tokenizer_error="KeyError: 'a'"
        )
