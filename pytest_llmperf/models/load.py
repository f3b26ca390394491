"""Load a model as its spec requests, or fail with a one-line error; nothing is substituted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from itertools import chain
from traceback import clear_frames
from typing import TYPE_CHECKING, Any

from pytest_llmperf.errors import (
    AttentionUnavailable,
    LlmperfError,
    MeasurementError,
    MissingDependency,
    ModelError,
)
from pytest_llmperf.metrics import Scalar
from pytest_llmperf.models.attention import attention_of, cannot_run_here, check_loaded
from pytest_llmperf.models.quantization import QUANTIZATIONS, STORED, Quantization, check_available, compute_dtype
from pytest_llmperf.models.quantized_layers import PARAMETRIZE, check_layers, kept_dense, quantize_experts
from pytest_llmperf.models.quantized_weights import Verified, method_of, verify
from pytest_llmperf.models.quiet import quiet
from pytest_llmperf.models.source import check_source, identify, is_local, locate, named_model, stored_config
from pytest_llmperf.models.spec import ModelSpec
from pytest_llmperf.models.synthetic import is_synthetic

if TYPE_CHECKING:
    import torch


@dataclass(eq=False, kw_only=True)
class LoadedModel:
    """A handle to a model in memory: the value of the ``llm`` fixture.

    Attributes:
        spec: The requested spec.
        model: The ``PreTrainedModel``, in evaluation mode; reading it after ``close`` raises ModelError.
        tokenizer: Its tokenizer, or None if the model has none.
        name: The display name, never an absolute path.
        revision: Identifies the weights.
        dtype: The actual compute dtype, such as ``bfloat16``.
        attention: The actual attention implementation.
        device: The requested device.
        quantization: The form of its weights, such as ``nf4``; what was requested unless that is ``stored``.
        settings: What else distinguishes this model from others of its name; part of the workload.
    """

    spec: ModelSpec
    model: Any = field(repr=False)
    tokenizer: Any | None = field(repr=False)
    name: str
    revision: str
    dtype: str
    attention: str
    device: str
    quantization: str = ""
    settings: Mapping[str, Scalar] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.quantization = self.quantization or self.spec.quantization

    @property
    def closed(self) -> bool:
        """Whether the model was released."""
        return "model" not in vars(self)

    def close(self) -> None:
        """Release the model, so that remaining references to this handle do not keep it in memory."""
        vars(self).pop("model", None)

    if not TYPE_CHECKING:  # otherwise type checkers accept any attribute

        def __getattr__(self, name: str) -> Any:
            if name == "model":
                raise ModelError(
                    f"model {str(self.spec)!r} was released to make room for the next one: "
                    "use the llm fixture only in the test that requested it"
                )
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


def load(spec: ModelSpec, device: str) -> LoadedModel:
    """Load a model on a device such as ``cpu`` or ``cuda:1``, without terminal output.

    Raises:
        UsageError: The spec is invalid, or cannot be loaded on this device.
        MissingDependency: A required package is not installed.
        ModelError: Loading failed, or the model is not as requested.
    """
    prepare(spec, device)
    with _one_line_errors(spec), quiet():
        return _load(spec, device)


def prepare(spec: ModelSpec, device: str) -> None:
    """Check a spec and do first-load work: imports, and building a synthetic model.

    If called before ``load``, the time of ``load`` excludes this work.

    Raises:
        UsageError, MissingDependency, ModelError: As ``load`` does.
    """
    check_source(spec)
    _check_packages(spec)
    check_available(QUANTIZATIONS[spec.quantization], device)
    with _one_line_errors(spec), quiet():
        _import_all(spec, locate(spec))


_IMPORTS = {
    "bitsandbytes": ("transformers.integrations.bitsandbytes", PARAMETRIZE),
    "torchao": ("transformers.integrations.torchao",),
}
"""What transformers imports while loading, by the package that quantizes."""


@cache
def _import_all(spec: ModelSpec, source: str) -> None:
    """Import what the libraries import while loading, which takes a hundred times as long as loading a small model.

    Cached by spec: ``load`` calls ``prepare`` again while timed, and must not read the config again for this.
    """
    from accelerate import dispatch_model  # noqa: F401  # accessing its attributes imports its parts
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, AutoTokenizer  # noqa: F401

    config = AutoConfig.from_pretrained(source, **_hub_options(spec))
    MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)  # looking up a model's class imports its module
    quantization, stored = QUANTIZATIONS[spec.quantization], getattr(config, "quantization_config", None)
    for module in _IMPORTS.get(method_of(stored) if stored else quantization.package, ()):
        if find_spec(module):
            import_module(module)
    if quantization.package:
        _kept_dense(spec, source)


@cache
def _kept_dense(spec: ModelSpec, source: str) -> tuple[str, ...]:
    """Names of the modules that must not be quantized, found in a model without its weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(source, **_hub_options(spec))
    if getattr(config, "quantization_config", None) is not None:
        return ()
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config, trust_remote_code=spec.trust_remote_code)
    return tuple(kept_dense(skeleton))


@contextmanager
def _one_line_errors(spec: ModelSpec) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        forget_locals(error)
        if isinstance(error, LlmperfError):
            raise
        kind = AttentionUnavailable if cannot_run_here(spec, error) else ModelError
        raise kind(_explain(spec, error)) from error


def _check_packages(spec: ModelSpec) -> None:
    for package in ("torch", "transformers", "accelerate"):
        if find_spec(package) is None:
            raise MissingDependency(package, extra="models", purpose=f"loading model {spec.model!r}")


def forget_locals(error: BaseException | None) -> None:
    """Clear the frames of an error's traceback, which would keep a half-loaded model alive with the error."""
    while error is not None:
        clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _explain(spec: ModelSpec, error: Exception) -> str:
    """One line that says why loading failed and what to do."""
    model = named_model(spec)
    reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    if is_synthetic(model) or is_local(model) or not isinstance(error, OSError):
        return f"model {model!r} could not be loaded as {spec.quantization!r}: {reason}"
    if "safetensors" in reason:
        return (
            f"model {model!r} has no safetensors weights: pickled weights can run code and are not loaded; "
            "choose a revision with safetensors, or convert the model and pass its folder"
        )
    return (
        f"model {model!r} is neither a local folder nor reachable on the Hugging Face hub ({reason}): pass a folder, "
        "set HF_TOKEN for a private or gated model, or HF_HUB_OFFLINE=1 to use the cache"
    )


def _load(spec: ModelSpec, device: str) -> LoadedModel:
    source = locate(spec)
    model = _load_weights(spec, source, device)
    name, revision = identify(spec, model.config)
    verified = _verified(spec, model)
    return LoadedModel(
        spec=spec,
        model=model.eval(),
        tokenizer=_load_tokenizer(spec, source),
        name=name,
        revision=revision,
        dtype=_dtype(model),
        attention=attention_of(model),
        device=device,
        quantization=verified.label,
        settings=verified.settings,
    )


def _verified(spec: ModelSpec, model: Any) -> Verified:
    try:
        return verify(model, spec.quantization)
    except ModelError as error:
        stored = stored_config(named_model(spec), spec.revision) if spec.quantization == STORED else None
        method = f" is stored as {method_of(stored)!r}, and" if stored else ":"
        raise ModelError(f"model {spec.model!r}{method} {error}") from None


def _load_weights(spec: ModelSpec, source: str, device: str) -> Any:
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(
        source,
        device_map={"": device},
        attn_implementation=spec.attention,
        use_safetensors=True,
        output_loading_info=True,
        **_dtype_options(spec, source, device),
        **_hub_options(spec),
    )
    _check_complete(spec, report)
    if wrong := misplaced(model, device):
        raise ModelError(f"model {spec.model!r} has {wrong}")
    check_loaded(spec, model)
    quantize_experts(model, QUANTIZATIONS[spec.quantization])
    check_layers(model, device, name=named_model(spec))
    return model


def _load_tokenizer(spec: ModelSpec, source: str) -> Any | None:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source, **_hub_options(spec))
    except (ImportError, OSError, ValueError):  # raised by transformers if there are no tokenizer files
        return None


def _hub_options(spec: ModelSpec) -> dict[str, Any]:
    revision = {"revision": spec.revision} if spec.revision else {}
    return {"trust_remote_code": spec.trust_remote_code, **revision}


def _dtype_options(spec: ModelSpec, source: str, device: str) -> dict[str, Any]:
    from transformers import AutoConfig

    quantization = QUANTIZATIONS[spec.quantization]
    stored = getattr(AutoConfig.from_pretrained(source, **_hub_options(spec)), "quantization_config", None)
    if spec.quantization == STORED:
        _check_is_stored(spec, stored)
        return {"dtype": "auto"}
    dtype = compute_dtype(quantization, device)
    if stored is not None:  # transformers ignores another config with a warning, and treats None as one
        _check_stored_quantization(spec, quantization, stored)
        return {"dtype": dtype}
    kept = _kept_dense(spec, source) if quantization.package else ()
    config = quantization.transformers_config(dtype, kept=kept)
    return {"dtype": dtype} if config is None else {"dtype": dtype, "quantization_config": config}


def _check_is_stored(spec: ModelSpec, stored: Any | None) -> None:
    if stored is None:
        raise ModelError(
            f"model {spec.model!r} is not quantized, and 'stored' takes the quantization of a checkpoint: expected a "
            "quantization_config in its config.json; choose another quantization, such as bf16 or nf4"
        )


def _check_stored_quantization(spec: ModelSpec, asked: Quantization, stored: Any) -> None:
    """Check that a quantized checkpoint has the requested quantization, which cannot be changed."""
    found = stored if isinstance(stored, dict) else stored.to_dict()
    if not asked.describes(found):
        names = [quantization.name for quantization in QUANTIZATIONS.values() if quantization.describes(found)]
        method = names[0] if names else method_of(found)
        names = [*names, STORED]
        raise ModelError(
            f"model {spec.model!r} is stored as {method!r} and cannot be converted to {asked.name!r}: "
            f"request {' or '.join(map(repr, names))} (--llmperf-quantization={names[-1]})"
        )


def _check_complete(spec: ModelSpec, report: dict[str, Any]) -> None:
    """Check that the checkpoint is complete: the library initializes missing weights randomly and only warns."""
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            f"model {spec.model!r} lacks {len(missing)} of its weights, the first {missing[0]!r}: "
            "expected a complete causal language model"
        )


def misplaced(model: Any, device: str) -> str:
    """The first of a model's tensors that is not on the device; empty if all are."""
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if not _is_on(tensor.device, device):
            return f"{name!r} on {str(tensor.device)!r}, expected {device!r}"
    return ""


def check_whole(model: Any) -> None:
    """Check that a test has not distributed the model over several accelerators.

    Raises:
        MeasurementError: its tensors are on more than one; the message names them.
    """
    tensors = chain(model.parameters(), model.buffers())
    found = sorted({str(tensor.device) for tensor in tensors if tensor.device.type not in ("cpu", "meta")})
    if len(found) > 1:
        raise MeasurementError(
            f"the model is on {', '.join(found)}; expected one device, because time and memory are measured on one: "
            "keep the model where the llm fixture loaded it, or measure a server (--llmperf-engine openai)"
        )


def _is_on(found: torch.device, device: str) -> bool:
    """Whether a device matches the requested one; ``cuda`` without an index matches any."""
    kind, _, index = device.partition(":")
    return found.type == kind and index in ("", str(found.index))


def _dtype(model: Any) -> str:
    """The compute dtype: that of a 4-bit model's config, else the dtype of unquantized weights."""
    quantization: Any = getattr(model.config, "quantization_config", None)
    is_4bit = getattr(quantization, "load_in_4bit", False)
    return str(quantization.bnb_4bit_compute_dtype if is_4bit else model.dtype).removeprefix("torch.")
