"""How many positions a model has, and whether a request fits them."""

from __future__ import annotations

from typing import Any

from pytest_llmperf.errors import UsageError

_NAMES = (
    "max_position_embeddings",  # first: configs with another name of their own often map this one to it
    "n_positions",
    "max_seq_len",
    "max_sequence_length",
    "max_seq_length",
    "max_positions",
    "n_ctx",
    "seq_length",
)
_ENCODER = ("max_encoder_position_embeddings", "max_source_positions")
_DECODER = ("max_decoder_position_embeddings", "max_target_positions")


def position_limit(config: Any) -> int | None:
    """The number of positions of a decoder-only model; ``None`` if its config names no limit."""
    return _limit(config.get_text_config(), _NAMES)


def longest_request(config: Any) -> int | None:
    """Most tokens of prompt and output together; ``None`` without a limit, or if an encoder reads the prompt.

    The last output token is never fed back, so it needs no position.
    """
    limit = None if _is_encoder_decoder(config) else position_limit(config)
    return None if limit is None else limit + 1


def check_fits(config: Any, *, input_tokens: int, output_tokens: int) -> None:
    """Check that a request has no more positions than the model.

    The decoder of an encoder-decoder model has positions of its own: a start token, and the output but for its last
    token.

    Raises:
        UsageError: the request is longer than the model's limit.
    """
    if _is_encoder_decoder(config):
        text = config.get_text_config()
        _check("input", input_tokens, _limit(text, (*_ENCODER, *_NAMES)))
        _check("output", output_tokens, _limit(text, (*_DECODER, *_NAMES)))
        return
    limit = position_limit(config)
    if limit is not None and input_tokens + output_tokens - 1 > limit:
        raise UsageError(
            f"{input_tokens} input and {output_tokens} output tokens exceed the model's limit of {limit} positions: "
            "use fewer"
        )


def _check(kind: str, tokens: int, limit: int | None) -> None:
    if limit is not None and tokens > limit:
        raise UsageError(f"{tokens} {kind} tokens exceed the model's limit of {limit} positions: use fewer")


def _limit(config: Any, names: tuple[str, ...]) -> int | None:
    if hasattr(config, "relative_attention_num_buckets"):  # T5: its config may name a length, which limits nothing
        return None
    found = (getattr(config, name, None) for name in names)
    return next((value for value in found if isinstance(value, int) and value > 0), None)


def _is_encoder_decoder(config: Any) -> bool:
    return getattr(config, "is_encoder_decoder", False)
