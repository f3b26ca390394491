"""Assisted decoding: a forward verifies tokens that a draft model proposed, or that were looked up in the sequence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from pytest_llmperf.engines.executions.execution import (
    Generated,
    OnToken,
    PreparedExecution,
    Request,
    library_generate,
    unnoticed,
)
from pytest_llmperf.engines.executions.static_cache import unlike_loop
from pytest_llmperf.engines.generation_settings import SPECULATION, GenerationSettings
from pytest_llmperf.errors import ExecutionUnavailable, UsageError
from pytest_llmperf.hardware.clock import Clock
from pytest_llmperf.metrics import Figure, Scalar
from pytest_llmperf.models.load import LoadedModel, load
from pytest_llmperf.models.model_registry import free_memory
from pytest_llmperf.models.spec import ModelSpec
from pytest_llmperf.models.weights import weights_bytes
from pytest_llmperf.text import first_line
from pytest_llmperf.validation import require_whole

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Lookup:
    """``generate`` with prompt lookup: proposes what followed the same tokens earlier in the sequence.

    Args:
        tokens: most tokens that are proposed at a time.
        ngram: most tokens that are looked up.

    Raises:
        UsageError: a number is not a positive integer.
    """

    name: ClassVar[str] = "lookup"

    tokens: int = 10
    ngram: int = 2

    def __post_init__(self) -> None:
        require_whole("lookup: tokens", self.tokens, at_least=1)
        require_whole("lookup: ngram", self.ngram, at_least=1)

    @property
    def settings(self) -> Mapping[str, Scalar]:
        """Settings that determine what is proposed."""
        return {"tokens": self.tokens, "ngram": self.ngram}

    @contextmanager
    def open(self, model: Any, prompt: torch.Tensor, output_tokens: int, clock: Clock) -> Iterator[PreparedExecution]:  # noqa: ARG002  # other executions use it
        """Make a request that counts what is proposed.

        Raises:
            ExecutionUnavailable: the batch has several sequences, or the model cannot be assisted.
            UsageError: the model's generation config asks for what cannot be measured.
        """
        assistance = Assistance(self.name, model, prompt)
        options = {"prompt_lookup_num_tokens": self.tokens, "max_matching_ngram_size": self.ngram}
        request = partial(assistance.plain, **options)
        yield assistance.prepared(request, output_tokens)


@dataclass(frozen=True)
class Assisted:
    """``generate`` with a draft model, which proposes tokens by greedy decode.

    Args:
        assistant: the draft model: a name, a folder or a spec. It has the vocabulary of the model that it assists.
        tokens: most tokens that are proposed at a time.
        confidence: the draft model proposes no more after a token whose probability is below it; 0 for always
            ``tokens``. If scikit-learn is installed, transformers adapts it during a request.

    Raises:
        UsageError: there is no draft model, or a number is out of range.
    """

    name: ClassVar[str] = "assisted"

    assistant: str | ModelSpec
    tokens: int = 20
    confidence: float = 0.4

    def __post_init__(self) -> None:
        require_whole("assisted: tokens", self.tokens, at_least=1)
        if isinstance(self.confidence, bool) or not 0 <= self.confidence < 1:
            raise UsageError(f"assisted: confidence={self.confidence!r}: expected a probability, at least 0, below 1")
        if self.spec.model is None:
            raise UsageError("assisted: the assistant names no model: expected ModelSpec(model=...)")

    @property
    def spec(self) -> ModelSpec:
        """The draft model; a name alone is loaded in bf16."""
        return self.assistant if isinstance(self.assistant, ModelSpec) else ModelSpec(self.assistant)

    @property
    def settings(self) -> Mapping[str, Scalar]:
        """Settings that determine how many tokens are proposed; the draft model is added when it is loaded."""
        return {"tokens": self.tokens, "confidence": self.confidence}

    @contextmanager
    def open(self, model: Any, prompt: torch.Tensor, output_tokens: int, clock: Clock) -> Iterator[PreparedExecution]:  # noqa: ARG002  # other executions use it
        """Load the draft model, and make a request that counts what is proposed.

        Raises:
            ExecutionUnavailable: the batch has several sequences, or the model cannot be assisted.
            ModelError: the draft model cannot be loaded.
            UsageError: the draft model has another vocabulary, or the model's generation config asks for what cannot be
                measured.
        """
        assistance = Assistance(self.name, model, prompt)
        with _draft(self.spec, str(prompt.device)) as draft:
            _check_vocabulary(draft, model)
            draft.model.generation_config = self._drafting(draft)

            def request(output_tokens: int, on_token: OnToken) -> Generated:
                return assistance.plain(output_tokens, on_token, assistant=draft.model)

            weights = Figure("assistant_weights_bytes", weights_bytes(draft.model))
            yield assistance.prepared(request, output_tokens, figures=[weights], settings=self._identity(draft))

    def _drafting(self, draft: LoadedModel) -> Any:
        """The draft model's generation config, of which ``generate`` takes the number of tokens to propose."""
        from transformers import GenerationConfig

        return GenerationConfig(
            num_assistant_tokens=self.tokens,
            num_assistant_tokens_schedule="constant",
            assistant_confidence_threshold=self.confidence,
            pad_token_id=draft.model.generation_config.pad_token_id,
        )

    def _identity(self, draft: LoadedModel) -> dict[str, Scalar]:
        from transformers.utils import is_sklearn_available

        return {
            "assistant": draft.name,
            "assistant_revision": draft.revision,
            "assistant_quantization": draft.quantization,
            "assistant_dtype": draft.dtype,
            "assistant_attention": draft.attention,
            "confidence_adapts": bool(self.confidence and is_sklearn_available()),
            **{f"assistant_{name}": value for name, value in draft.settings.items()},
        }


class Assistance:
    """Requests of one sequence, plain and assisted.

    Raises:
        ExecutionUnavailable: the batch has several sequences, or the model an encoder.
        UsageError: the model's generation config asks for what cannot be measured.
    """

    def __init__(self, execution: str, model: Any, prompt: torch.Tensor) -> None:
        if prompt.shape[0] > 1:
            raise ExecutionUnavailable(
                f"execution {execution!r} takes one sequence, found a batch of {prompt.shape[0]}: use batch_size=1"
            )
        if getattr(model.config, "is_encoder_decoder", False):
            raise ExecutionUnavailable(
                f"execution {execution!r} takes models without an encoder, found {type(model).__name__}: use generate"
            )
        self._execution, self._model, self._prompt = execution, model, prompt
        self._settings = GenerationSettings.of(model, batch_size=1, leave=SPECULATION)
        self.plain = partial(library_generate, model, prompt, settings=self._settings)

    def prepared(
        self,
        request: Request,
        output_tokens: int,
        *,
        figures: Sequence[Figure] = (),
        settings: Mapping[str, Scalar] | None = None,
    ) -> PreparedExecution:
        """An assisted request with its figures; those of assistance are counted in a first request.

        Raises:
            ExecutionUnavailable: transformers cannot assist this model.
        """
        try:
            with _forwards(self._model) as widths:
                generated = request(output_tokens, unnoticed)
        except (NotImplementedError, ValueError) as error:  # how generate refuses a model that it cannot assist
            kind = type(self._model).__name__
            raise ExecutionUnavailable(
                f"execution {self._execution!r} cannot run with {kind}: {first_line(error)}"
            ) from error
        found = [
            *assistance_figures(widths, input_tokens=self._prompt.shape[1], output_tokens=output_tokens),
            unlike_loop(generated, self.plain(output_tokens, unnoticed).tokens),
            *figures,
        ]
        return PreparedExecution(request, lambda: found, settings={**self._settings.recorded, **(settings or {})})


def assistance_figures(widths: Sequence[int], *, input_tokens: int, output_tokens: int) -> list[Figure]:
    """Acceptance rate, and tokens per step.

    Every step verifies what is proposed, and adds a token of its own to what it accepts.

    Args:
        widths: positions of each forward of the main model: the prompt in the first, in later ones the last token, and
            in all what is proposed.
        input_tokens: length of the prompt.
        output_tokens: tokens of the request.
    """
    steps = len(widths)
    proposed = sum(widths) - input_tokens - (steps - 1)
    rate = (output_tokens - steps) / proposed if proposed else None
    return [
        Figure("acceptance_share", rate, "" if proposed else "no token was proposed"),
        Figure("tokens_per_step", output_tokens / steps),
    ]


@contextmanager
def _forwards(model: Any) -> Iterator[list[int]]:
    """Yield the number of positions of each forward of a model in the block."""
    widths: list[int] = []
    handle = model.register_forward_pre_hook(
        lambda _model, _arguments, options: widths.append(options["input_ids"].shape[1]), with_kwargs=True
    )
    try:
        yield widths
    finally:
        handle.remove()


@contextmanager
def _draft(spec: ModelSpec, device: str) -> Iterator[LoadedModel]:
    """The draft model, for the duration of the block."""
    draft = load(spec, device)
    try:
        yield draft
    finally:
        draft.close()
        free_memory(device)


def _check_vocabulary(draft: LoadedModel, model: Any) -> None:
    """Check that token ids mean the same to both models."""
    found, expected = (one.config.get_text_config().vocab_size for one in (draft.model, model))
    if found != expected:
        raise UsageError(
            f"execution 'assisted': the assistant {draft.name} has a vocabulary of {found} tokens, the model one of "
            f"{expected}: use an assistant of the same family"
        )
