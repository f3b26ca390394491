"""Load a model as its spec requests, or fail with a one-line error; nothing is substituted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from itertools import accumulate, chain
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
from pytest_llmperf.models.adapter import Adapter, find_adapter
from pytest_llmperf.models.attention import attention_of, cannot_run_here, check_loaded
from pytest_llmperf.models.model_class import auto_class
from pytest_llmperf.models.quantization import QUANTIZATIONS, STORED, Quantization, check_available, compute_dtype
from pytest_llmperf.models.quantized_layers import PARAMETRIZE, check_layers, kept_dense, quantize_experts
from pytest_llmperf.models.quantized_weights import Verified, method_of, quantization_label, verify
from pytest_llmperf.models.quiet import quiet
from pytest_llmperf.models.source import check_source, identify, is_local, locate, named_model, stored_config
from pytest_llmperf.models.spec import ModelSpec
from pytest_llmperf.models.structure import structure_digest
from pytest_llmperf.models.synthetic import is_synthetic
from pytest_llmperf.text import error_line, plural

if TYPE_CHECKING:
    import torch


@dataclass(eq=False, kw_only=True)
class LoadedModel:
    """A handle to a model in memory: the value of the ``llm`` fixture.

    Attributes:
        spec: The requested spec; None for a model that the test built.
        model: The ``PreTrainedModel``, in evaluation mode; reading it after ``close`` raises ModelError.
        tokenizer: Its tokenizer, or None if the model has none.
        tokenizer_error: Why the tokenizer is None; empty if it is not.
        name: The display name, never an absolute path.
        revision: Identifies the weights; None if that is unknown.
        dtype: The actual compute dtype, such as ``bfloat16``.
        attention: The actual attention implementation.
        device: The requested device.
        quantization: The form of its weights, such as ``nf4``; what was requested unless that is ``stored``.
        settings: What else distinguishes this model from others of its name; part of the workload.
        structure: Digest of its structure when it was loaded.
    """

    spec: ModelSpec | None
    model: Any = field(repr=False)
    tokenizer: Any | None = field(repr=False)
    name: str
    revision: str | None
    quantization: str
    dtype: str
    attention: str
    device: str
    settings: Mapping[str, Scalar] = field(default_factory=dict)
    structure: str = ""
    tokenizer_error: str = ""

    @property
    def title(self) -> str:
        """The model in messages."""
        return str(self.spec) if self.spec else self.name

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
                    f"model {self.title!r} was released to make room for the next one: "
                    "use the llm fixture only in the test that requested it"
                )
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


def as_it_is(loaded: LoadedModel) -> LoadedModel:
    """The handle with what its model is now: a test may have changed it since it was loaded.

    A model of other weights gets the setting ``changed``, so that it is not compared with the model of that name.
    """
    found = structure_digest(loaded.model)
    present = replace(loaded, attention=attention_of(loaded.model))
    if found == loaded.structure:
        return present
    return replace(
        present,
        quantization=quantization_label(loaded.model),
        dtype=dtype_of(loaded.model),
        settings={**loaded.settings, "changed": found},
    )


def load(spec: ModelSpec, device: str) -> LoadedModel:
    """Load a model on a device such as ``cpu`` or ``cuda:1``, without terminal output.

    Raises:
        UsageError: The spec is invalid, or cannot be loaded on this device.
        MissingDependency: A required package is not installed.
        ModelError: Loading failed, or the model is not as requested.
    """
    prepare(spec, device)
    with one_line_errors(spec), quiet():
        return _load(spec, device)


def prepare(spec: ModelSpec, device: str) -> None:
    """Check a spec and do first-load work: imports, and building a synthetic model.

    If called before ``load``, the time of ``load`` excludes this work.

    Raises:
        UsageError, MissingDependency, ModelError: As ``load`` does.
    """
    check_source(spec)
    check_packages(spec)
    check_available(QUANTIZATIONS[spec.quantization], device)
    with one_line_errors(spec), quiet():
        source = locate(spec)
        _import_all(*_whole(spec, source, find_adapter(spec, source)))


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
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer  # noqa: F401  # imports their modules

    config = AutoConfig.from_pretrained(source, **hub_options(spec))
    _auto_class(spec, config)  # looking up a model's class imports its module
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
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(source, **hub_options(spec))
    if getattr(config, "quantization_config", None) is not None:
        return ()
    with torch.device("meta"):
        skeleton = _auto_class(spec, config).from_config(config, trust_remote_code=spec.trust_remote_code)
    return tuple(kept_dense(skeleton))


@contextmanager
def one_line_errors(spec: ModelSpec) -> Iterator[None]:
    """Raise errors of the libraries in the block as a ModelError of one line."""
    try:
        yield
    except Exception as error:
        forget_locals(error)
        if isinstance(error, LlmperfError):
            raise
        kind = AttentionUnavailable if cannot_run_here(spec, error) else ModelError
        raise kind(_explain(spec, error)) from error


def check_packages(spec: ModelSpec) -> None:
    """Check that the packages that every model needs are installed.

    Raises:
        MissingDependency: One is not.
    """
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
    if "trust_remote_code" in str(error) and not spec.trust_remote_code:
        return (
            f"model {model!r} needs code that comes with it, which does not run without consent: read that code, then "
            "pass --llmperf-trust-remote-code or ModelSpec(..., trust_remote_code=True)"
        )
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
    adapter = find_adapter(spec, source)
    model, left_out = _load_weights(*_whole(spec, source, adapter), device)
    named = replace(spec, model=str(adapter.folder)) if adapter else spec  # its folder in the hub's cache has a name
    name, revision = identify(named, model.config)
    verified = verified_form(spec, model)
    settings = _adapter_settings(adapter, model.config) if adapter else {}
    if adapter:
        model = adapter.apply(model, device)
        _check_placed(spec, model, device)
    tokenizer, tokenizer_error = load_tokenizer(*_with_tokenizer(spec, source, adapter))
    return LoadedModel(
        spec=spec,
        model=model.eval(),
        tokenizer=tokenizer,
        tokenizer_error=tokenizer_error,
        name=f"{name} (without {left_out})" if left_out else name,
        revision=revision,
        dtype=dtype_of(model),
        attention=attention_of(model),
        device=device,
        quantization=verified.label,
        settings={**verified.settings, **settings},
        structure=structure_digest(model),
    )


def verified_form(spec: ModelSpec, model: Any) -> Verified:
    """Check that the weights have the form that the spec requests.

    Raises:
        ModelError: None has; the message names the model.
    """
    try:
        return verify(model, spec.quantization)
    except ModelError as error:
        stored = stored_config(named_model(spec), spec.revision) if spec.quantization == STORED else None
        method = f" is stored as {method_of(stored)!r}, and" if stored else ":"
        raise ModelError(f"model {spec.model!r}{method} {error}") from None


def _whole(spec: ModelSpec, source: str, adapter: Adapter | None) -> tuple[ModelSpec, str]:
    """The spec and source of the whole model: itself, or an adapter's base.

    Raises:
        UsageError: The base does not exist.
    """
    if adapter is None:
        return spec, source
    check_source(adapter.base)
    return adapter.base, locate(adapter.base)


def _adapter_settings(adapter: Adapter, config: Any) -> dict[str, Scalar]:
    base, revision = identify(adapter.base, config)
    return {"adapter": adapter.mode, "base": base, "base_revision": revision}


def _with_tokenizer(spec: ModelSpec, source: str, adapter: Adapter | None) -> tuple[ModelSpec, str]:
    """The spec and source of the tokenizer: an adapter may come with one of its own."""
    has_own = adapter is None or (adapter.folder / "tokenizer_config.json").exists()
    return (spec, source) if has_own else _whole(spec, source, adapter)


def _auto_class(spec: ModelSpec, config: Any) -> Any:
    return auto_class(config, named_model(spec), trusts_code=spec.trust_remote_code)


def _load_weights(spec: ModelSpec, source: str, device: str) -> tuple[Any, str]:
    """Load a model; return it and the names of the checkpoint's modules that it does not have."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(source, **hub_options(spec))
    model, report = _auto_class(spec, config).from_pretrained(
        source,
        device_map={"": device},
        attn_implementation=spec.attention,
        use_safetensors=True,
        output_loading_info=True,
        **dtype_options(spec, source, config, device),
        **hub_options(spec),
    )
    _check_complete(spec, report)
    _check_placed(spec, model, device)
    check_loaded(spec, model)
    quantize_experts(model, QUANTIZATIONS[spec.quantization])
    check_layers(model, device, name=named_model(spec))
    return model, _left_out(model, report["unexpected_keys"])


def _check_placed(spec: ModelSpec, model: Any, device: str) -> None:
    if wrong := misplaced(model, device):
        raise ModelError(f"model {spec.model!r} has {wrong}")


def _left_out(model: Any, unused: Iterable[str]) -> str:
    """Names of modules in the checkpoint that the model does not have; unused tensors of its own modules are old."""
    modules = {name for name, _ in model.named_modules()}
    paths = (accumulate(key.split(".")[:-1], lambda path, part: f"{path}.{part}") for key in unused)
    first, *others = sorted(
        {found for path in paths if (found := next((p for p in path if p not in modules), ""))}
    ) or [""]
    return f"{first} and {plural(len(others), 'other module')}" if others else first


def load_tokenizer(spec: ModelSpec, source: str) -> tuple[Any | None, str]:
    """The tokenizer and an empty text, or None and the reason: a model without one can be measured on token ids."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source, **hub_options(spec)), ""
    except Exception as error:  # noqa: BLE001  # the library raises whatever a broken file leads to
        return None, error_line(error)


def hub_options(spec: ModelSpec) -> dict[str, Any]:
    """Arguments of every ``from_pretrained``."""
    revision = {"revision": spec.revision} if spec.revision else {}
    return {"trust_remote_code": spec.trust_remote_code, **revision}


def dtype_options(spec: ModelSpec, source: str, config: Any, device: str) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` that decide the form of the weights.

    Raises:
        ModelError: The checkpoint is quantized, and not as the spec requests.
    """
    quantization = QUANTIZATIONS[spec.quantization]
    stored = getattr(config, "quantization_config", None)
    if spec.quantization == STORED:
        _check_is_stored(spec, stored)
        return {"dtype": "auto"}
    dtype = compute_dtype(quantization, device)
    if stored is not None:  # transformers ignores another config with a warning, and treats None as one
        _check_stored_quantization(spec, quantization, stored)
        return {"dtype": dtype}
    kept = _kept_dense(spec, source) if quantization.package else ()
    ours = quantization.transformers_config(dtype, kept=kept)
    return {"dtype": dtype} if ours is None else {"dtype": dtype, "quantization_config": ours}


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
            "expected a complete model"
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


def dtype_of(model: Any) -> str:
    """The compute dtype: that of a 4-bit model's config, else the dtype of unquantized weights."""
    quantization: Any = getattr(getattr(model, "config", None), "quantization_config", None)
    if getattr(quantization, "load_in_4bit", False):
        return str(quantization.bnb_4bit_compute_dtype).removeprefix("torch.")
    weights = (tensor.dtype for tensor in model.parameters() if tensor.is_floating_point())
    return str(getattr(model, "dtype", None) or next(weights, "unknown")).removeprefix("torch.")
