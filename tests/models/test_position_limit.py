"""Positions of a model, by whatever name its config has, and requests that fit them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pytest_llmperf.errors import UsageError
from pytest_llmperf.models.position_limit import check_fits, longest_request, position_limit


def config(**names: Any) -> Any:
    made = SimpleNamespace(is_encoder_decoder=False)
    vars(made).update(names, get_text_config=lambda: made)
    return made


@pytest.mark.parametrize("name", ["max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "seq_length"])
def test_any_name(name: str) -> None:
    """The last token needs no position."""
    assert position_limit(config(**{name: 16})) == 16
    assert longest_request(config(**{name: 16})) == 17


def test_the_common_name_counts_where_there_are_two() -> None:
    assert position_limit(config(n_ctx=2048, max_position_embeddings=16)) == 16


def test_no_limit() -> None:
    """None is named, or none is meant: T5 has relative positions, whatever length its config names."""
    for unlimited in (config(), config(n_positions=512, relative_attention_num_buckets=32), config(n_ctx=-1)):
        assert longest_request(unlimited) is None
        check_fits(unlimited, input_tokens=10**6, output_tokens=10**6)


def test_what_fits() -> None:
    check_fits(config(n_positions=128), input_tokens=64, output_tokens=65)
    check_fits(config(n_positions=128), input_tokens=128, output_tokens=1)
    with pytest.raises(UsageError, match="64 input and 66 output tokens exceed the model's limit of 128 positions"):
        check_fits(config(n_positions=128), input_tokens=64, output_tokens=66)


def test_an_encoder_and_a_decoder_have_positions_each() -> None:
    both = config(is_encoder_decoder=True, max_encoder_position_embeddings=32, max_position_embeddings=16)
    assert longest_request(both) is None
    check_fits(both, input_tokens=32, output_tokens=16)
    with pytest.raises(UsageError, match="33 input tokens exceed the model's limit of 32 positions"):
        check_fits(both, input_tokens=33, output_tokens=1)
    with pytest.raises(UsageError, match="17 output tokens exceed the model's limit of 16 positions"):
        check_fits(both, input_tokens=1, output_tokens=17)
