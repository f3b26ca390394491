"""Generation config of a checkpoint: each field is ours, part of the workload, or refused; none acts unseen.

``generate`` fills every field that its caller leaves unset from the model's generation config. So the config of a
request is built here, and replaces the model's while the request runs.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any

from pytest_llmperf.errors import ExecutionUnavailable, UsageError
from pytest_llmperf.metrics import Scalar
from pytest_llmperf.text import first_line

OURS = frozenset({
    # The plan decides the lengths.
    "max_length", "max_new_tokens", "min_length", "min_new_tokens", "max_time", "eos_token_id", "forced_bos_token_id",
    "forced_eos_token_id", "exponential_decay_length_penalty", "begin_suppress_tokens",
    # The plan decides the sampling.
    "do_sample", "temperature", "top_k", "top_p", "top_h", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff",
    "remove_invalid_values", "renormalize_logits",
    # Outputs that nobody reads.
    "output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate",
    # A decode has a cache, is no draft model's, and gets token ids.
    "use_cache", "low_memory", "is_assistant", "token_healing",
    # Without effect on `generate` without beams.
    "early_stopping", "length_penalty", "num_beam_groups", "diversity_penalty", "continuous_batching_config",
    "transformers_version",
})  # fmt: skip
"""Fields whose value is the plan's, or the library's default: the checkpoint's is not used."""

IDS = frozenset({"bos_token_id", "pad_token_id", "decoder_start_token_id"})
"""Fields that name tokens of the vocabulary. They are kept; they do not change the work."""

SPECULATION = frozenset({
    "prompt_lookup_num_tokens", "max_matching_ngram_size", "assistant_early_exit", "num_assistant_tokens",
    "num_assistant_tokens_schedule", "assistant_confidence_threshold", "assistant_lookbehind", "target_lookbehind",
    "assistant_ensemble_weight", "speculation_type",
})  # fmt: skip
"""Fields of assisted decoding: part of the workload, unless the execution decides them."""

WORKLOAD = SPECULATION | {
    "repetition_penalty", "encoder_repetition_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size",
    "bad_words_ids", "suppress_tokens", "sequence_bias", "guidance_scale", "watermarking_config",
    "cache_implementation", "cache_config", "max_cache_len", "prefill_chunk_size", "compile_config", "disable_compile",
}  # fmt: skip
"""Fields that are kept and recorded. A field that is in no list, such as one of a newer transformers, is too."""

REFUSED: Mapping[str, str] = {
    "num_beams": "beam search is not measured: set it to 1",
    "num_return_sequences": "several sequences for a prompt are not measured: set it to 1",
    "stop_strings": "a request has a fixed number of tokens: remove it",
    "use_mtp": "prediction of several tokens at a time is not measured: remove it",
    "penalty_alpha": "contrastive search is not measured: remove it",
    "dola_layers": "decoding by contrasting layers is not measured: remove it",
    "constraints": "constrained beam search is not measured: remove it",
    "force_words_ids": "constrained beam search is not measured: remove it",
}
"""Fields that are not measured, each with the reason and what to do."""

_ONE_SEQUENCE = ("prompt_lookup_num_tokens", "assistant_early_exit")
_GROWING = ("dynamic", "offloaded", "quantized", "hybrid")
"""Implementations of a cache that grows; ``generate`` takes ``hybrid``, in older checkpoints, for ``dynamic``."""
_UNUSABLE = (AttributeError, ImportError, IndexError, KeyError, NotImplementedError, TypeError, ValueError)
"""What ``generate`` raises for settings that it cannot combine with each other, the model or the environment."""


@dataclass(frozen=True)
class GenerationSettings:
    """What a request takes from a model's generation config."""

    kept: Mapping[str, Any]
    """Values that differ from the library's defaults."""
    ids: Mapping[str, Any]

    @classmethod
    def of(cls, model: Any, *, batch_size: int, leave: Collection[str] = ()) -> GenerationSettings:
        """Read a model's generation config.

        Args:
            model: a model that ``generate`` accepts.
            batch_size: sequences of a request.
            leave: fields that the execution decides.

        Raises:
            ExecutionUnavailable: the config asks for assisted decoding, which takes one sequence.
            UsageError: a field asks for what is not measured.
        """
        given = _given(model.generation_config)
        for name, advice in REFUSED.items():
            if name in given:
                raise UsageError(f"generation_config {name}={_scalar(given[name])}: {advice}")
        kept = {name: value for name, value in given.items() if name not in {*OURS, *IDS, *leave}}
        _check_cache(kept, model)
        assisted = [name for name in _ONE_SEQUENCE if name in kept]
        if assisted and batch_size > 1:
            raise ExecutionUnavailable(
                f"generation_config {assisted[0]}={kept[assisted[0]]}: assisted decoding takes one sequence, found "
                f"{batch_size}: use batch_size=1"
            )
        return cls(kept, {name: value for name, value in given.items() if name in IDS})

    @property
    def recorded(self) -> dict[str, Scalar]:
        """The settings as part of a workload; other than numbers and texts are JSON."""
        return {name: _scalar(value) for name, value in sorted(self.kept.items())}

    def compiles(self, device: str) -> bool:
        """Whether ``generate`` compiles the forward of a decode step, as it does on CUDA with a cache of fixed size."""
        has_fixed_size = self.kept.get("cache_implementation", "dynamic") not in _GROWING
        return has_fixed_size and device.startswith("cuda") and not self.kept.get("disable_compile")

    @contextmanager
    def applied(self, model: Any, **chosen: Any) -> Iterator[Any]:
        """Yield the config of a request, which is also the model's for the duration of the block.

        Args:
            model: the model that generates.
            chosen: fields of ``GenerationConfig`` that the request decides.

        Raises:
            UsageError: ``generate`` cannot do what the kept settings say.
        """
        from transformers import GenerationConfig

        before = model.generation_config
        try:
            config = GenerationConfig(**{**self.ids, **self.kept, **chosen})
            model.generation_config = config
            yield config
        except _UNUSABLE as error:
            if not self.kept:
                raise
            settings = ", ".join(f"{name}={value}" for name, value in self.recorded.items())
            raise UsageError(
                f"generate of transformers {version('transformers')} cannot run with generation_config {settings}: "
                f"{first_line(error).rstrip('.')}: remove it, or install what it needs"
            ) from error
        finally:
            model.generation_config = before


def _check_cache(kept: Mapping[str, Any], model: Any) -> None:
    kind = str(kept.get("cache_implementation", ""))
    if kind == "paged":
        raise UsageError("generation_config cache_implementation=paged is continuous batching: use llmperf.serve")
    if kind.startswith("offloaded") and model.device.type != "cuda":
        raise UsageError(
            f"generation_config cache_implementation={kind} keeps the cache outside of a CUDA device, found "
            f"{model.device.type!r}: remove it"
        )


def _given(config: Any) -> dict[str, Any]:
    """Fields of a generation config that differ from the library's defaults."""
    neutral = _neutral()
    found = ((name, value) for name, value in vars(config).items() if not name.startswith("_"))
    return {name: value for name, value in found if value is not None and value != neutral.get(name)}


@cache
def _neutral() -> Mapping[str, Any]:
    """The library's defaults. Since transformers 5, a config holds ``None`` until ``generate`` fills them in."""
    from transformers import GenerationConfig

    config = GenerationConfig()
    return {**vars(config), **getattr(config, "_get_default_generation_params", dict)()}


def _scalar(value: Any) -> Scalar:
    if value is None or isinstance(value, str | bool | int | float):
        return value
    return json.dumps(_plain(value), separators=(",", ":"), sort_keys=True, default=str)


def _plain(value: Any) -> Any:
    """A value of JSON's types: configs become objects, and keys that are tuples become texts."""
    value = value.to_dict() if hasattr(value, "to_dict") else value
    if isinstance(value, Mapping):
        return {name if isinstance(name, str) else str(name): _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value
