"""Model spec: which model a test measures, and how it is loaded."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from pytest_llmperf.errors import UsageError
from pytest_llmperf.models.hub_snapshot import hub_snapshot
from pytest_llmperf.models.quantization import find_quantization

ADAPTER_MODES = ("attached", "merged")


@dataclass(frozen=True)
class ModelSpec:
    """A model to load. Equal specs are loaded once.

    Attributes:
        model: A name on the Hugging Face hub, a local folder or ``synthetic:NAME``; None is the run's default model. A
            PEFT adapter loads with its base model.
        quantization: A name in ``QUANTIZATIONS``.
        revision: A branch, tag or commit on the hub.
        attention: The attention implementation (``eager``, ``sdpa``, ...); None is the library's choice.
        trust_remote_code: Whether code that comes with the model may run on this machine.
        adapter: How to load an adapter: ``attached`` (the default) or ``merged`` into its base model.

    Raises:
        UsageError: A field has the wrong type, is empty, or names no quantization.
    """

    model: str | None = None
    quantization: str = "bf16"
    revision: str | None = None
    attention: str | None = None
    trust_remote_code: bool = False
    adapter: str | None = None

    def __post_init__(self) -> None:
        for name in ("model", "revision", "attention"):
            if getattr(self, name) is not None:
                self._check_text(name)
        self._check_text("quantization")
        find_quantization(self.quantization)
        if not isinstance(self.trust_remote_code, bool):
            raise UsageError(f"ModelSpec: trust_remote_code is {self.trust_remote_code!r}, expected True or False")
        if self.adapter not in (None, *ADAPTER_MODES):
            raise UsageError(f"ModelSpec: adapter is {self.adapter!r}, expected {' or '.join(ADAPTER_MODES)}")

    def _check_text(self, name: str) -> None:
        value = getattr(self, name)
        if not isinstance(value, str) or not value.strip():
            raise UsageError(f"ModelSpec: {name} is {value!r}, expected a non-empty string")

    def __str__(self) -> str:
        """A readable, stable pytest id: ``nf4``, ``NAME-nf4``, ``NAME-nf4-eager@rev``."""
        parts = (self.model and _last_part(self.model), self.quantization, self.attention, self.adapter)
        return "-".join(part for part in parts if part) + (f"@{self.revision}" if self.revision else "")

    @classmethod
    def parse(cls, value: str | ModelSpec) -> ModelSpec:
        """Return a spec unchanged; a string becomes the default model in that quantization.

        Raises:
            UsageError: The string names no quantization, or the value is neither a string nor a spec.
        """
        if isinstance(value, ModelSpec):
            return value
        if not isinstance(value, str):
            raise UsageError(f"llm parameter is {value!r}, expected a quantization's name or a ModelSpec")
        return cls(quantization=value)

    def with_defaults(
        self,
        *,
        model: str | None = None,
        revision: str | None = None,
        attention: str | None = None,
        trust_remote_code: bool = False,
        adapter: str | None = None,
    ) -> ModelSpec:
        """Fill unset fields with the run's defaults.

        Revision, trust and adapter belong to the default model and are not applied to another one.
        """
        filled = replace(self, model=self.model or model, attention=self.attention or attention)
        if filled.model != model:
            return filled
        return replace(
            filled,
            revision=self.revision or revision,
            trust_remote_code=self.trust_remote_code or trust_remote_code,
            adapter=self.adapter or adapter,
        )


def _last_part(model: str) -> str:
    snapshot = hub_snapshot(Path(model))
    model = snapshot.name if snapshot else model
    return re.split(r"[/\\]", model.rstrip("/\\"))[-1] or model
