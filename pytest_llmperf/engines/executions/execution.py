"""Execution interface, and the execution ``generate`` of transformers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from pytest_llmperf.engines.generation_settings import GenerationSettings
from pytest_llmperf.errors import MeasurementError
from pytest_llmperf.hardware.clock import Clock
from pytest_llmperf.metrics import Figure, Scalar

if TYPE_CHECKING:
    import torch

CACHE_NAMES = ("past_key_values", "cache_params", "state")
"""Names of the cache in a model's output, and of the argument that takes it back."""


class OnToken(Protocol):
    """Called when output tokens are available."""

    def __call__(self, count: int = 1, /) -> object:
        """Take notice of ``count`` more tokens of each sequence."""


def unnoticed(_count: int = 1, /) -> None:
    """An `OnToken` that does nothing."""


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
        """Make the request; ``on_token`` is called for each output token, or for several that come at a time."""


@dataclass(frozen=True)
class PreparedExecution:
    """An execution that is ready for one prompt."""

    request: Request
    figures: Callable[[], Sequence[Figure]] = tuple
    """The execution's own figures, such as setup costs; called at the end."""
    dispatches: bool = True
    """Whether every operator goes through torch's dispatcher, which counting operators and forward hooks require."""
    settings: Mapping[str, Scalar] = field(default_factory=dict)
    """What the model and its files add to the settings of the execution; part of the workload."""


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


def library_generate(  # noqa: PLR0913, PLR0917  # a request, and what each caller decides of it
    model: Any,
    prompt: torch.Tensor,
    output_tokens: int,
    on_token: OnToken,
    settings: GenerationSettings | None = None,
    assistant: Any | None = None,
    **chosen: Any,
) -> Generated:
    """Call ``model.generate`` with a streamer, as a user of the library would; greedy unless ``chosen`` says otherwise.

    It checks for EOS tokens as usual, but their ids are unreachable. ``min_new_tokens`` would also prevent stopping,
    but it processes the logits in every step, which is work that a user does not have.

    Args:
        model: a causal language model of transformers.
        prompt: token ids of shape ``(batch, input tokens)``.
        output_tokens: tokens to generate for each sequence.
        on_token: called with the number of tokens that came.
        settings: what to take from the model's generation config; read from it if ``None``.
        assistant: draft model of assisted decoding.
        chosen: further fields of ``GenerationConfig``.

    Raises:
        ExecutionUnavailable, UsageError: the model's generation config asks for what cannot be measured.
    """
    import torch

    settings = settings or GenerationSettings.of(model, batch_size=prompt.shape[0])
    eos = model.generation_config.eos_token_id
    own = {
        "max_new_tokens": output_tokens,
        "eos_token_id": _unreachable(model, eos),
        "pad_token_id": _pad_token(model, eos),
        "return_dict_in_generate": True,
        "do_sample": False,
        "use_cache": True,
        **chosen,
    }
    with settings.applied(model, **own) as config:
        out = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            streamer=_TokenStreamer(on_token),
            generation_config=config,
            **({} if assistant is None else {"assistant_model": assistant}),
        )
    before = 1 if is_encoder_decoder(model) else prompt.shape[1]
    return Generated(out.sequences[:, before:], _last_cache(out))


def is_encoder_decoder(model: Any) -> bool:
    """Whether an encoder reads the prompt, so that the output begins with a start token instead."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def _last_cache(out: Any) -> Any:
    """The cache in an output of ``generate``, under any of its names."""
    return next((out[name] for name in CACHE_NAMES if out.get(name) is not None), None)


@dataclass(frozen=True)
class Generate:
    """The library's own ``generate``, with what the checkpoint's generation config asks for."""

    name: ClassVar[str] = "generate"

    @property
    def settings(self) -> Mapping[str, Scalar]:
        """None of its own: the model's are read when it is opened."""
        return {}

    @contextmanager
    def open(self, model: Any, prompt: torch.Tensor, output_tokens: int, clock: Clock) -> Iterator[PreparedExecution]:  # noqa: ARG002  # other executions use them
        """Read the model's generation config.

        Raises:
            ExecutionUnavailable, UsageError: it asks for what cannot be measured.
        """
        settings = GenerationSettings.of(model, batch_size=prompt.shape[0])
        yield PreparedExecution(
            partial(library_generate, model, prompt, settings=settings),
            dispatches=not settings.compiles(str(prompt.device)),
            settings=settings.recorded,
        )


def check_produced(generated: Generated, *, batch_size: int, output_tokens: int, counted: int) -> None:
    """Check that a request produced all requested tokens, and that its stamps belong to all of them.

    Args:
        generated: what the request returned.
        batch_size: sequences that were requested.
        output_tokens: tokens that were requested for each.
        counted: tokens of each sequence that ``on_token`` was told.

    Raises:
        MeasurementError: other than ``batch_size`` x ``output_tokens`` tokens were produced or counted.
    """
    found = tuple(generated.tokens.shape)
    if found != (batch_size, output_tokens):
        raise MeasurementError(
            f"the model produced {found[-1]} tokens for each of {found[0]} prompts; expected {output_tokens} for "
            f"each of {batch_size}: other lengths are not comparable"
        )
    if counted != output_tokens:
        raise MeasurementError(
            f"the model produced {output_tokens} tokens for each prompt, and {counted} were counted when they came: "
            "their times are unknown"
        )


class _TokenStreamer:
    """The streamer methods that ``generate`` calls. The first ``put`` receives the prompt."""

    def __init__(self, on_token: OnToken) -> None:
        self._on_token = on_token
        self._sequences = 0

    def put(self, value: torch.Tensor) -> None:
        """Count the tokens that came: one of each sequence, or several of a single one."""
        if self._sequences:
            self._on_token(value.numel() // self._sequences)
        else:
            self._sequences = value.shape[0]

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
