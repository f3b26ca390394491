"""PEFT adapters: an adapter loads with its base model, merged into it or attached."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llmperf.errors import MissingDependency, ModelError, UsageError

if TYPE_CHECKING:
    from pytest_llmperf.models.spec import ModelSpec

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
MERGED = "merged"
_FILES = (CONFIG, WEIGHTS, "*.json", "*.model", "*.jinja", "*.txt")
"""What is downloaded of an adapter: no pickles, and no code."""


@dataclass(frozen=True)
class Adapter:
    """An adapter and the spec of its base model.

    Attributes:
        folder: The adapter's files.
        base: The spec of the base model, quantized as requested of the adapter.
        is_merged: Whether it is merged into the base; else each adapted layer computes it beside the base's weights.
    """

    folder: Path
    base: ModelSpec
    is_merged: bool

    @property
    def mode(self) -> str:
        """``merged`` or ``attached``."""
        return MERGED if self.is_merged else "attached"

    def apply(self, model: Any, device: str) -> Any:
        """Load the adapter into its base model, on the same device; return the model.

        Raises:
            ModelError: the adapter lacks weights, or cannot be used in this way.
        """
        from peft import PeftModel
        from peft.tuners.tuners_utils import BaseTuner

        if self.is_merged and getattr(model, "hf_quantizer", None) is not None:
            raise ModelError(
                f"adapter {self.folder.name!r} cannot be merged into {self.base.quantization!r} weights, because "
                "merging would round them again: use adapter='attached', or merge it into 16-bit weights"
            )
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Found missing adapter keys")  # they would be random
            adapted = PeftModel.from_pretrained(
                model, str(self.folder), torch_device=device, autocast_adapter_dtype=False
            )
        if not isinstance(adapted.base_model, BaseTuner):
            kind = adapted.active_peft_config.peft_type
            raise ModelError(f"adapter {self.folder.name!r} is of type {kind}: expected one that adapts layers")
        return adapted.merge_and_unload() if self.is_merged else adapted.get_base_model()


def is_adapter(folder: Path) -> bool:
    """Whether a folder has a PEFT adapter."""
    return (folder / CONFIG).is_file()


def find_adapter(spec: ModelSpec, source: str) -> Adapter | None:
    """The adapter that a spec names; ``None`` if it names a whole model. Downloads it from the hub.

    Args:
        spec: the spec.
        source: its folder or its name on the hub.

    Raises:
        UsageError: the spec says how to load an adapter, and its model is none, or the adapter names no base.
        MissingDependency: peft is not installed.
    """
    folder = Path(source) if Path(source).is_dir() else _hub_adapter(source, spec.revision)
    if folder is None or not is_adapter(folder):
        check_no_adapter(spec)
        return None
    check_adapter(spec, folder)
    config = adapter_config(folder)
    base = config["base_model_name_or_path"]
    revision = None if Path(base).exists() else config.get("revision")
    return Adapter(folder, replace(spec, model=base, revision=revision, adapter=None), spec.adapter == MERGED)


def check_no_adapter(spec: ModelSpec) -> None:
    """Reject a spec that says how to load an adapter.

    Raises:
        UsageError: it does.
    """
    if spec.adapter is not None:
        raise UsageError(f"model {spec.model!r} has no {CONFIG}: leave out adapter={spec.adapter!r}")


def check_adapter(spec: ModelSpec, folder: Path) -> None:
    """Check what can be checked of an adapter without loading it.

    Raises:
        UsageError: it has no safetensors or names no base model.
        MissingDependency: peft is not installed.
    """
    if not (folder / WEIGHTS).is_file():
        pickled = folder / "adapter_model.bin"
        found = f"only pickled weights ({pickled.name}), which can run code" if pickled.exists() else "no weights"
        raise UsageError(f"adapter {spec.model!r} has {found}: expected {WEIGHTS}")
    base = adapter_config(folder).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UsageError(f"adapter {spec.model!r} names no base model: set base_model_name_or_path in its {CONFIG}")
    if find_spec("peft") is None:
        raise MissingDependency("peft", extra="adapters", purpose=f"adapter {spec.model!r}")


def adapter_config(folder: Path) -> Mapping[str, Any]:
    """The adapter's config.

    Raises:
        UsageError: it is not a JSON object.
    """
    try:
        found = json.loads((folder / CONFIG).read_bytes())
    except ValueError as error:
        raise UsageError(f"{folder.name}/{CONFIG} is not JSON ({error}): save the adapter again") from error
    if not isinstance(found, dict):
        raise UsageError(f"{folder.name}/{CONFIG} is {type(found).__name__}, expected a JSON object")
    return found


@cache
def _hub_adapter(name: str, revision: str | None) -> Path | None:
    """The folder in the hub's cache of an adapter; ``None`` if the hub has no adapter of this name."""
    from transformers.utils import find_adapter_config_file

    if find_adapter_config_file(name, revision=revision) is None:
        return None
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, revision=revision, allow_patterns=list(_FILES)))
