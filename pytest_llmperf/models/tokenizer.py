"""Tokenizer of the synthetic models: every id is printable ASCII text.

With random weights any id may come next. With a byte-level vocabulary, most sequences would be invalid UTF-8, which a
streaming server holds back. Here each token is valid text as soon as it is produced.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain, count, islice, product
from types import MappingProxyType
from typing import Any

SPECIAL_IDS: Mapping[str, int] = MappingProxyType({"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2})

_SPECIAL = ("<s>", "</s>", "<pad>")
_VISIBLE = tuple(map(chr, range(0x21, 0x7F)))
_CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %} {{ message['role'] }}: {{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %} assistant:{% endif %}"
)


def pieces(vocab_size: int) -> list[str]:
    """The text of each id: special tokens, then single characters, then words that begin with a space.

    A text of such words is tokenized to the ids it was made from, so text prompts can have an exact number of tokens.
    """
    return list(islice(chain(_SPECIAL, (" ", *_VISIBLE), _words()), vocab_size))


def _words() -> Iterator[str]:
    return (" " + "".join(letters) for length in count(1) for letters in product(_VISIBLE, repeat=length))


def printable_tokenizer(vocab_size: int, max_length: int) -> Any:
    """Create a fast tokenizer of ``vocab_size`` ids with a chat template, of the class that ``AutoTokenizer`` loads."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=_backend(vocab_size),
        bos_token=_SPECIAL[0],
        eos_token=_SPECIAL[1],
        pad_token=_SPECIAL[2],
        chat_template=_CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=max_length,
    )


def _backend(vocab_size: int) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers

    # Equal scores: text is split into as few pieces as possible.
    tokenizer = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces(vocab_size)]))
    # Characters outside the vocabulary are replaced.
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex(r"\s"), " "), normalizers.Replace(Regex(r"[^ -~]"), "?")]
    )
    tokenizer.decoder = decoders.Fuse()
    return tokenizer
