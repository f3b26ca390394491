"""Synthetic models (``synthetic:NAME``): known architectures with seeded random weights, built without a network.

They are saved once in the user's cache folder as bf16 safetensors, and loaded like any local folder. Their speed and
memory are therefore those of trained weights of the same shape.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pytest_llmperf.errors import UsageError
from pytest_llmperf.system.paths import user_folder

PREFIX = "synthetic:"

# Increment this when the weights, the tokenizer or a shape change: that creates a new folder and revision.
_RECIPE = 1
_SEED = 0
_MAX_POSITIONS = 8192
_OUTLIER_EVERY = 512
_OUTLIER_SCALE = 12.0


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A Llama architecture; fields are named as in ``transformers.LlamaConfig``."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    tie_word_embeddings: bool


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        # For unit tests; sizes are multiples of what the quantized kernels require (64 in, 32 out).
        "synthetic:tiny": Architecture(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=512,
            tie_word_embeddings=False,
        ),
        # The default on a CPU.
        "synthetic:32m": Architecture(
            hidden_size=512,
            intermediate_size=1536,
            num_hidden_layers=8,
            num_attention_heads=8,
            num_key_value_heads=4,
            vocab_size=8192,
            tie_word_embeddings=False,
        ),
        # Llama 3.2 1B.
        "synthetic:1b": Architecture(
            hidden_size=2048,
            intermediate_size=8192,
            num_hidden_layers=16,
            num_attention_heads=32,
            num_key_value_heads=8,
            vocab_size=128256,
            tie_word_embeddings=True,
        ),
        # Llama 3.1 8B.
        "synthetic:8b": Architecture(
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            vocab_size=128256,
            tie_word_embeddings=False,
        ),
    }
)


def is_synthetic(name: str) -> bool:
    """Whether ``name`` is that of a synthetic model, known or not."""
    return name.startswith(PREFIX)


def synthetic_names() -> tuple[str, ...]:
    """All synthetic models with their prefix, smallest first."""
    return tuple(ARCHITECTURES)


def architecture(name: str) -> Architecture:
    """The architecture of a synthetic model.

    Raises:
        UsageError: The synthetic model is unknown.
    """
    if name not in ARCHITECTURES:
        raise UsageError(f"model {name!r} does not exist: expected one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def revision(name: str) -> str:
    """Revision of a synthetic model's weights: the recipe's version and the seed."""
    architecture(name)
    return f"recipe-{_RECIPE}-seed-{_SEED}"


def cache_folder() -> Path:
    """The folder of all synthetic models."""
    return user_folder("models")


def model_folder(name: str) -> Path:
    """The folder of a synthetic model, whether built or not.

    Raises:
        UsageError: The synthetic model is unknown.
    """
    return cache_folder() / f"{name.removeprefix(PREFIX)}-{revision(name)}-transformers-{_transformers_major()}"


def prepare(name: str) -> Path:
    """Build a synthetic model unless it exists, which takes seconds, or minutes for ``8b``; return its folder.

    Building needs about as much memory as the bf16 model. Concurrent processes wait for one of them to build.

    Raises:
        UsageError: The synthetic model is unknown.
        OSError: The cache folder is not writable.
    """
    shape, folder = architecture(name), model_folder(name)
    if not folder.is_dir():
        from filelock import FileLock

        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                _build(shape, folder)
    return folder


def prepare_config(name: str) -> Path:
    """Write the config of a synthetic model, without weights, unless it exists; return its folder.

    Raises:
        UsageError: The synthetic model is unknown.
        OSError: The cache folder is not writable.
    """
    folder = model_folder(name)
    if not folder.is_dir():
        folder = folder.with_name(f"{folder.name}-config")
        _config(architecture(name)).save_pretrained(folder)
    return folder


def _transformers_major() -> str:
    """The major version of transformers: version 4 cannot read tokenizers written by version 5."""
    return version("transformers").partition(".")[0]


def _build(shape: Architecture, folder: Path) -> None:
    """Save a model next to ``folder`` and rename it, so that the folder always contains a complete model."""
    from pytest_llmperf.models.quiet import quiet
    from pytest_llmperf.models.tokenizer import printable_tokenizer

    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left over from a killed build
    try:
        with quiet():
            printable_tokenizer(shape.vocab_size, _MAX_POSITIONS).save_pretrained(partial)
            _random_model(shape).save_pretrained(partial)
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _random_model(shape: Architecture) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    # On the meta device, so that nothing is initialized twice or in fp32.
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(_config(shape), dtype=torch.bfloat16)
    model.to_empty(device="cpu")
    model.tie_weights()
    _initialise(model)
    return model


def _config(shape: Architecture) -> Any:
    from transformers import LlamaConfig

    from pytest_llmperf.models.tokenizer import SPECIAL_IDS

    return LlamaConfig(
        **asdict(shape), **SPECIAL_IDS, max_position_embeddings=_MAX_POSITIONS, architectures=["LlamaForCausalLM"]
    )


def _initialise(model: Any) -> None:
    """Initialize random weights so that models of all shapes behave alike, and cost as much as trained ones.

    - Activations keep about unit scale, and a token's embedding outweighs what the layers add to it. Each row of the
      head is the embedding of the previous id, so greedy decoding counts upwards with a wide margin: kernels that round
      differently still produce the same tokens. (A tied head repeats the token.)
    - One feature in 512 is large before each layer, as in trained models of this size. Otherwise int8-decomp would have
      no outliers to multiply separately.
    """
    import torch

    generator = torch.Generator().manual_seed(_SEED)
    damping = 0.25 * (2 * model.config.num_hidden_layers) ** -0.5  # each layer adds attention and MLP
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0)
                if "layers." in name:
                    parameter[::_OUTLIER_EVERY] = _OUTLIER_SCALE
            elif "embed_tokens" in name:
                parameter.normal_(generator=generator).sign_()  # equal norms: no row of the head wins by its norm
            elif "lm_head" in name:
                parameter.copy_(model.get_input_embeddings().weight.roll(1, dims=0) * parameter.shape[1] ** -0.5)
            else:
                adds = name.endswith(("o_proj.weight", "down_proj.weight"))
                std = parameter.shape[1] ** -0.5 * (damping if adds else 1.0)
                parameter.normal_(std=std, generator=generator)
