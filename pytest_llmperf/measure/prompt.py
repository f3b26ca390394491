"""Reproducible prompts: seeded random or given token ids, a text, or a chat through the tokenizer's template."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llmperf.errors import UsageError

if TYPE_CHECKING:
    import torch


Message = tuple[str, str]
"""Role and content."""

FORMS = "random, text:WORDS, file:PATH, chat, chat:PATH or ids:PATH"

_CHAT: tuple[Message, ...] = (
    ("system", "You are a helpful assistant who explains things step by step."),
    ("user", "Explain how a language model turns a prompt into text, one token at a time."),
)


@dataclass(frozen=True)
class Prompt:
    """The prompt of a batch: random or given ids for each sequence, or the same text or chat for all."""

    text: str | None = None
    chat: tuple[Message, ...] | None = None
    ids: tuple[tuple[int, ...], ...] | None = None
    """Token ids of each sequence, all of one length."""

    @property
    def is_random(self) -> bool:
        """Whether the prompt is random ids, of any requested length."""
        return self.text is None and self.chat is None and self.ids is None

    @classmethod
    def parse(cls, text: str) -> Prompt:
        """Parse a command-line prompt in one of the `FORMS`.

        Raises:
            UsageError: the form is unknown, or a file cannot be read.
        """
        kind, colon, rest = text.partition(":")
        if text in ("random", "chat"):
            return cls() if text == "random" else cls(chat=_CHAT)
        if not colon or not rest or kind not in ("text", "file", "chat", "ids"):
            raise UsageError(f"prompt {text!r}: expected {FORMS}")
        if kind == "text":
            return cls(text=rest)
        words = _read(Path(rest))
        if kind == "ids":
            return cls(ids=token_ids(_json(words, rest), rest, equal=True))
        return cls(text=words) if kind == "file" else cls(chat=_messages(_json(words, rest), rest))

    @classmethod
    def of(cls, value: str | Path | Sequence[Mapping[str, str]] | Sequence[Sequence[int]]) -> Prompt:
        """Create a prompt from a test's value: a text, a text file, token ids of each sequence, or chat messages with
        ``role`` and ``content``.

        Raises:
            UsageError: a file cannot be read, the text is empty, or ids or messages are malformed.
        """
        if isinstance(value, str | Path):
            text = _read(value) if isinstance(value, Path) else value
            if not text:
                raise UsageError("prompt '': expected some text")
            return cls(text=text)
        if isinstance(value, Sequence) and value and all(isinstance(part, Sequence) for part in value):
            return cls(ids=token_ids(value, "prompt", equal=True))
        return cls(chat=_messages(value, "prompt"))


RANDOM = Prompt()


def prompt_ids(  # noqa: PLR0913  # the parts of a batch
    prompt: Prompt,
    config: Any,
    tokenizer: Any | None,
    *,
    batch_size: int,
    input_tokens: int,
    seed: int,
    tokenizer_error: str = "",
) -> torch.Tensor:
    """Token ids of a batch, on the host.

    Args:
        prompt: the prompt.
        config: the model's config.
        tokenizer: the model's tokenizer, if it has one.
        batch_size: number of sequences.
        input_tokens: length of random prompts; other prompts have their own.
        seed: seed of random prompts.
        tokenizer_error: why the model has no tokenizer.

    Returns:
        Shape ``(batch_size, tokens)``.

    Raises:
        UsageError: the model has no tokenizer or no chat template, or the prompt has no tokens, too few sequences, or
            ids beyond the vocabulary.
    """
    if prompt.is_random:
        return random_prompt(config, batch_size=batch_size, input_tokens=input_tokens, seed=seed)
    import torch

    if prompt.ids is not None:
        return torch.tensor(_first_sequences(prompt.ids, batch_size, config.get_text_config().vocab_size))
    return torch.tensor([_tokenized(prompt, tokenizer, tokenizer_error)]).expand(batch_size, -1).contiguous()


def random_prompt(config: Any, *, batch_size: int, input_tokens: int, seed: int) -> torch.Tensor:
    """Seeded random token ids without special tokens, of shape ``(batch_size, input_tokens)``, on the host.

    Raises:
        UsageError: the vocabulary contains only special tokens.
    """
    import torch

    text_config = config.get_text_config()
    special = _special_ids(text_config) | _placeholders(config)
    ordinary = torch.tensor([token for token in range(text_config.vocab_size) if token not in special])
    if not len(ordinary):
        raise UsageError(
            f"the vocabulary of {text_config.vocab_size} tokens has only special tokens; expected ordinary ones"
        )
    generator = torch.Generator().manual_seed(seed)
    return ordinary[torch.randint(len(ordinary), (batch_size, input_tokens), generator=generator)]


def token_ids(value: Any, name: str, *, equal: bool = False) -> tuple[tuple[int, ...], ...]:
    """Check token ids of several sequences; ``equal`` requires one length for all.

    Raises:
        UsageError: the value has another form.
    """
    expected = f"expected a list of sequences{' of one length' if equal else ''}, each a list of token ids"
    if not isinstance(value, Sequence) or not value or not all(map(_are_ids, value)):
        raise UsageError(f"{name}: {expected}, such as [[5, 6], [7, 8]]")
    if equal and len(set(map(len, value))) > 1:
        raise UsageError(f"{name}: found sequences of {min(map(len, value))} to {max(map(len, value))} ids, {expected}")
    return tuple(map(tuple, value))


def digest(tokens: torch.Tensor) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of token ids of any shape."""
    import torch

    ids = tokens.to(device="cpu", dtype=torch.int64).contiguous()
    return hashlib.sha256(ids.numpy().tobytes()).hexdigest()[:16]


def _are_ids(value: Any) -> bool:
    whole = isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0
    return whole and all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in value)


def _first_sequences(ids: Sequence[Sequence[int]], wanted: int, vocabulary: int) -> Sequence[Sequence[int]]:
    if len(ids) < wanted:
        raise UsageError(f"a prompt of {len(ids)} sequences for a batch of {wanted}: expected at least as many")
    if (largest := max(map(max, ids))) >= vocabulary:
        raise UsageError(f"the prompt has token id {largest}: expected ids below the vocabulary of {vocabulary}")
    return ids[:wanted]


def _tokenized(prompt: Prompt, tokenizer: Any | None, tokenizer_error: str) -> list[int]:
    if tokenizer is None:
        reason = f" ({tokenizer_error})" if tokenizer_error else ""
        raise UsageError(f"the model has no tokenizer for a text prompt{reason}: use a random prompt")
    if prompt.chat is None:
        ids = tokenizer(prompt.text)["input_ids"]
    elif not tokenizer.chat_template:
        raise UsageError("the model's tokenizer has no chat template: use a text prompt")
    else:
        messages = [{"role": role, "content": content} for role, content in prompt.chat]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]  # the template adds special tokens
    if not ids:
        raise UsageError("the prompt has no tokens: expected some text")
    return list(ids)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"prompt file {path}: {getattr(error, 'strerror', None) or error}") from error


def _json(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"prompt file {name}: line {error.lineno}: {error.msg}; expected JSON") from error


def _messages(value: Any, name: str) -> tuple[Message, ...]:
    expected = 'expected a list of {"role": ..., "content": ...} with text in both'
    if not isinstance(value, Sequence) or not value:
        raise UsageError(f"{name}: {expected}")
    for message in value:
        known = isinstance(message, Mapping) and set(message) == {"role", "content"}
        if not known or not all(isinstance(part, str) for part in message.values()):
            raise UsageError(f"{name}: found {message!r}, {expected}")
    return tuple((message["role"], message["content"]) for message in value)


def _placeholders(config: Any) -> set[int]:
    """The ids that stand for an image or another input in the prompts of a model that reads more than text."""
    if config.get_text_config() is config:
        return set()
    named = (value for name, value in config.to_dict().items() if name.endswith(("_token_id", "_token_index")))
    return {value for value in named if isinstance(value, int)}


def _special_ids(config: Any) -> set[int]:
    found: set[int] = set()
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        ids = getattr(config, name, None)
        found.update(ids if isinstance(ids, list | tuple) else [ids] if ids is not None else [])
    return found
