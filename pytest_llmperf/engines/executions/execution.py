"""Execution interface, and the eager executions: transformers' ``generate`` and a greedy loop."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from pytest_llmperf.errors import MeasurementError
from pytest_llmperf.hardware.clock import Clock
from pytest_llmperf.metrics import Figure, Scalar

if TYPE_CHECKING:
    import torch

OnToken = Callable[[], object]
"""Called once per output token of the batch, when it is available."""


@dataclass(frozen=True)
class Generated:
    """Output of one request."""

    tokens: torch.Tensor
    """Output token ids, shape ``(batch, output tokens)``."""
    cache: Any
    """The model's KV cache after the last token."""


class Request(Protocol):
    """Makes one request: prefill, then greedy decode of exactly ``output_tokens`` tokens."""

    def __call__(self, output_tokens: int, on_token: OnToken) -> Generated:
        """Make the request; ``on_token`` is called once per output token of the batch."""


@dataclass(frozen=True)
class PreparedExecution:
    """An execution that is ready for one prompt."""

    request: Request
    figures: Callable[[], Sequence[Figure]] = tuple
    """The execution's own figures, such as setup costs; called at the end."""
    dispatches: bool = True
    """Whether every operator goes through torch's dispatcher, which counting operators and forward hooks require."""


class Execution(Protocol):
    """A way to run decode."""

    @property
    def name(self) -> str:
        """Recorded in the workload."""

    @property
    def settings(self) -> Mapping[str, Scalar]:
        """Further options, part of the workload."""

    def open(
        self, model: Any, prompt: torch.Tensor, output_tokens: int, clock: Clock
    ) -> AbstractContextManager[PreparedExecution]:
        """Set up for a prompt of shape ``(batch, input tokens)``, for the duration of the block."""


@dataclass(frozen=True)
class Eager:
    """An execution without setup."""

    name: str
    run: Callable[[Any, torch.Tensor, int, OnToken], Generated]
    settings: Mapping[str, Scalar] = field(default_factory=dict, hash=False)

    @contextmanager
    def open(self, model: Any, prompt: torch.Tensor, output_tokens: int, clock: Clock) -> Iterator[PreparedExecution]:  # noqa: ARG002  # other executions use them
        """Yield the request; nothing is set up."""
        yield PreparedExecution(partial(self.run, model, prompt))


def greedy_loop(model: Any, prompt: torch.Tensor, output_tokens: int, on_token: OnToken) -> Generated:
    """Prefill, then one forward per token, without synchronizing between tokens. EOS does not stop it."""
    import torch

    out = model(input_ids=prompt, use_cache=True, **last_logits_only(model))
    token = greedy(out)
    on_token()
    tokens = [token]
    for _ in range(output_tokens - 1):
        out = model(input_ids=token, past_key_values=out.past_key_values, use_cache=True)
        token = greedy(out)
        on_token()
        tokens.append(token)
    return Generated(torch.cat(tokens, dim=1), out.past_key_values)


def library_generate(
    model: Any, prompt: torch.Tensor, output_tokens: int, on_token: OnToken, **chosen: Any
) -> Generated:
    """Call ``model.generate`` with a streamer, as a user of the library would; greedy unless ``chosen`` says otherwise.

    It checks for EOS tokens as usual, but their ids are unreachable. ``min_new_tokens`` would also prevent stopping,
    but it processes the logits in every step, which is work that a user does not have.
    """
    import torch
    from transformers import GenerationConfig

    eos = model.generation_config.eos_token_id
    out = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        streamer=_TokenStreamer(on_token),
        generation_config=GenerationConfig(
            max_new_tokens=output_tokens,
            eos_token_id=_unreachable(model, eos),
            pad_token_id=_pad_token(model, eos),
            return_dict_in_generate=True,
            **{"do_sample": False, **chosen},
        ),
    )
    begin = 1 if model.config.is_encoder_decoder else prompt.shape[1]  # a decoder begins with a start token alone
    return Generated(out.sequences[:, begin:], out.past_key_values)


def check_produced(generated: Generated, *, batch_size: int, output_tokens: int) -> None:
    """Check that a request produced all requested tokens.

    Raises:
        MeasurementError: other than ``batch_size`` x ``output_tokens`` tokens were produced.
    """
    found = tuple(generated.tokens.shape)
    if found != (batch_size, output_tokens):
        raise MeasurementError(
            f"the model produced {found[-1]} tokens for each of {found[0]} prompts; expected {output_tokens} for "
            f"each of {batch_size}: other lengths are not comparable"
        )


class _TokenStreamer:
    """The streamer methods that ``generate`` calls. The first ``put`` receives the prompt."""

    def __init__(self, on_token: OnToken) -> None:
        self._on_token = on_token
        self._prompt_seen = False

    def put(self, _value: torch.Tensor) -> None:
        if self._prompt_seen:
            self._on_token()
        self._prompt_seen = True

    def end(self) -> None:
        """Do nothing: no tokens are buffered."""


def greedy(out: Any) -> torch.Tensor:
    """The most likely next token ids, shape ``(batch, 1)``."""
    token: torch.Tensor = out.logits[:, -1:].argmax(-1)
    return token


def last_logits_only(model: Any) -> dict[str, int]:
    """Options for a prefill that computes only the last position's logits, as ``generate`` does."""
    accepts = "logits_to_keep" in inspect.signature(model.forward).parameters
    return {"logits_to_keep": 1} if accepts else {}


def _unreachable(model: Any, eos: int | list[int] | None) -> list[int] | None:
    """As many EOS ids as the model has, all outside its vocabulary."""
    if eos is None:
        return None
    beyond: int = model.config.get_text_config().vocab_size
    return [beyond + number for number in range(len(eos) if isinstance(eos, list) else 1)]


def _pad_token(model: Any, eos: int | list[int] | None) -> int | None:
    pad = model.generation_config.pad_token_id
    if pad is not None:
        return int(pad)
    return eos[0] if isinstance(eos, list) else eos
