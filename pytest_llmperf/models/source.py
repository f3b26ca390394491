"""Model sources (synthetic, local folder, hub) and the identity of their weights."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pytest_llmperf.errors import UsageError
from pytest_llmperf.models import synthetic
from pytest_llmperf.models.adapter import CONFIG, adapter_config, check_adapter, check_no_adapter, is_adapter
from pytest_llmperf.models.attention import check_attention
from pytest_llmperf.models.hub_snapshot import hub_snapshot
from pytest_llmperf.models.spec import ModelSpec

_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_DECIDING = (
    "generation_config.json",
    "hf_quant_config.json",
    "quantization_config.json",
    "quantize_config.json",
)
"""Files beside ``config.json`` that decide what a model does in a request. Tokenizers do not: prompts are hashed."""
_LENGTH_BYTES = 8  # a safetensors file begins with its header's length, little-endian


DEFAULT_MODELS = {"cpu": "synthetic:32m"}
DEFAULT_ACCELERATOR_MODEL = "synthetic:1b"


def default_model(device: str) -> str:
    """The default model of a device."""
    return DEFAULT_MODELS.get(device, DEFAULT_ACCELERATOR_MODEL)


def is_local(model: str) -> bool:
    """Whether ``model`` is a local path, existing or not."""
    return model.startswith((".", "~")) or Path(model).is_absolute() or Path(model).exists()


def check_source(spec: ModelSpec, *, weights: bool = True) -> None:
    """Check everything about a model that can be checked before loading it, without the network.

    Args:
        spec: The model.
        weights: Whether its weights are needed, too.

    Raises:
        UsageError: No model, an unknown synthetic model, a folder without safetensors, an invalid hub name, a revision
            that would be ignored (of a folder), an adapter without base, or foreign code without consent.
        MissingDependency: The model is an adapter, and peft is not installed.
    """
    model = named_model(spec)
    if synthetic.is_synthetic(model):
        synthetic.architecture(model)
        check_no_adapter(spec)
    elif is_local(model):
        _check_folder(spec, model, weights=weights)
    else:
        _check_hub_name(model)
    _check_revision(spec)
    check_attention(spec)


def named_model(spec: ModelSpec) -> str:
    """The spec's model.

    Raises:
        UsageError: It has none: the run's default was not filled in.
    """
    if spec.model is None:
        raise UsageError(f"model of {str(spec)!r} is not set: pass --llmperf-model or ModelSpec(model=...)")
    return spec.model


def _check_folder(spec: ModelSpec, model: str, *, weights: bool) -> None:
    folder = Path(model).expanduser()
    wanted = f"expected a folder with config.json{' and *.safetensors' if weights else ''}"
    if not folder.is_dir():
        raise UsageError(f"model {model!r} {'is a file' if folder.exists() else 'does not exist'}: {wanted}")
    if is_adapter(folder):
        check_adapter(spec, folder)
        return
    check_no_adapter(spec)
    if not (folder / "config.json").is_file():
        raise UsageError(f"model {model!r} has no config.json: {wanted}")
    if weights and not any(folder.glob("*.safetensors")):
        pickles = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLES)
        found = f"only pickled weights ({pickles[0]}), which can run code" if pickles else "no weights"
        raise UsageError(f"model {model!r} has {found}: {wanted}; save_pretrained() writes them")


def _check_hub_name(model: str) -> None:
    if find_spec("huggingface_hub") is None:
        return
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(model)
    except HFValidationError:
        raise UsageError(
            f"model {model!r} is neither a local folder nor a valid name on the Hugging Face hub: expected a folder, "
            f"ORG/NAME or one of {', '.join(synthetic.synthetic_names())}"
        ) from None


def _check_revision(spec: ModelSpec) -> None:
    model = named_model(spec)
    if spec.revision is not None and (synthetic.is_synthetic(model) or is_local(model)):
        raise UsageError(
            f"revision {spec.revision!r} of model {model!r} would be ignored: only models on the Hugging Face hub have "
            "revisions; leave it out"
        )


def locate(spec: ModelSpec, *, weights: bool = True) -> str:
    """The argument for ``from_pretrained``: a folder or a hub name. Builds a synthetic model if it does not exist.

    Without ``weights``, a synthetic model's folder may hold its config alone.
    """
    model = named_model(spec)
    if synthetic.is_synthetic(model):
        return str(synthetic.prepare(model) if weights else synthetic.prepare_config(model))
    return str(Path(model).expanduser()) if is_local(model) else model


def stored_config(model: str, revision: str | None = None) -> dict[str, Any] | None:
    """The ``quantization_config`` of a checkpoint, without the network: from its folder, or from the hub's cache.

    Returns:
        None if the checkpoint has none, or its ``config.json`` is not here.
    """
    if synthetic.is_synthetic(model):
        return None
    file = Path(model).expanduser() / "config.json" if is_local(model) else _cached_config(model, revision)
    with suppress(OSError, ValueError):
        found = json.loads(file.read_text(encoding="utf-8")) if file else None
        return found.get("quantization_config") if isinstance(found, dict) else None
    return None


def identify(spec: ModelSpec, config: Any) -> tuple[str, str]:
    """A loaded model's display name and revision, without absolute paths.

    Args:
        spec: The loaded spec.
        config: The loaded model's ``PretrainedConfig``.
    """
    model = named_model(spec)
    if synthetic.is_synthetic(model):
        return model, synthetic.revision(model)
    if is_local(model):
        folder = Path(model).expanduser().resolve()
        return hub_snapshot(folder) or (folder.name, _fingerprint(folder))
    return model, getattr(config, "_commit_hash", None) or _cached_commit(model, spec.revision) or "unknown"


def _cached_commit(model: str, revision: str | None) -> str | None:
    """The commit of a branch or tag in the hub's cache, from which the model was loaded; else the revision as given."""
    config = _cached_config(model, revision)
    return config.parent.name if config else revision


def _cached_config(model: str, revision: str | None) -> Path | None:
    """The ``config.json`` of a model in the hub's cache; None if it is not there."""
    if find_spec("huggingface_hub") is None:
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    with suppress(HFValidationError):  # reported when the model is loaded
        config = try_to_load_from_cache(model, "config.json", revision=revision)
        return Path(config) if isinstance(config, str) else None
    return None


def _fingerprint(folder: Path) -> str:
    """Hash of configs, of code, and of each weight file's size and header: names, dtypes and shapes, not values."""
    digest = hashlib.sha256(_config(folder))
    for file in sorted((*(folder / name for name in _DECIDING), *folder.glob("*.py"))):
        if file.is_file():
            digest.update(f"\0{file.name}\0".encode() + file.read_bytes())
    for file in sorted(folder.glob("*.safetensors")):
        digest.update(f"\0{file.name}\0{file.stat().st_size}\0".encode())
        digest.update(_header(file))
    return f"sha256:{digest.hexdigest()}"


def _config(folder: Path) -> bytes:
    """A folder's config; that of an adapter without its base's name, which may be a path of this machine."""
    if not is_adapter(folder):
        return (folder / "config.json").read_bytes()
    config = {**adapter_config(folder), "base_model_name_or_path": None}
    return f"{CONFIG}\0{json.dumps(config, sort_keys=True)}".encode()


def _header(file: Path) -> bytes:
    with file.open("rb") as stream:
        length = stream.read(_LENGTH_BYTES)
        return length + stream.read(min(int.from_bytes(length, "little"), file.stat().st_size))
