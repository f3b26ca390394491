"""Model specs: validation, display and defaults."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.errors import UsageError
from pytest_llmperf.models.quantization import QUANTIZATIONS
from pytest_llmperf.models.spec import ModelSpec


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (ModelSpec(), "bf16"),
        (ModelSpec(quantization="nf4"), "nf4"),
        (ModelSpec(quantization="nf4", attention="eager"), "nf4-eager"),
        (ModelSpec("meta-llama/Llama-3.2-1B", "nf4"), "Llama-3.2-1B-nf4"),
        (ModelSpec("synthetic:32m", "int8-decomp"), "synthetic:32m-int8-decomp"),
        (ModelSpec("/data/models/mine/", "fp16"), "mine-fp16"),
        (ModelSpec("org/name", "int8", revision="v1.0"), "name-int8@v1.0"),
        (ModelSpec("org/name", "int8", revision="v1.0", attention="sdpa"), "name-int8-sdpa@v1.0"),
    ],
)
def test_id_is_stable(spec: ModelSpec, expected: str) -> None:
    """The pytest id is part of a baseline's key: a change here orphans every baseline."""
    assert str(spec) == expected


@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_parse_takes_every_quantization(name: str) -> None:
    """A bare string is a quantization of the default model, and its id."""
    spec = ModelSpec.parse(name)
    assert spec == ModelSpec(quantization=name)
    assert str(spec) == name
    assert ModelSpec.parse(spec) is spec


@pytest.mark.parametrize(
    ("typo", "near"), [("nf5", "nf4"), ("INT8", "int8"), ("bf-16", "bf16"), ("int8-dec", "int8-decomp")]
)
def test_unknown_quantization_names_the_nearest(typo: str, near: str) -> None:
    """The error has the nearest names and all names, in one line."""
    with pytest.raises(UsageError) as caught:
        ModelSpec.parse(typo)
    message = str(caught.value)
    assert message.startswith(f"quantization {typo!r} does not exist (did you mean ")
    assert near in message.partition("?")[0]
    assert message.endswith(", ".join(QUANTIZATIONS))
    assert "\n" not in message


def test_unknown_quantization_without_a_near_one() -> None:
    """Without a near name, there is no suggestion."""
    with pytest.raises(UsageError, match="quantization 'zzz' does not exist: expected one of bf16"):
        ModelSpec.parse("zzz")


@pytest.mark.parametrize(
    ("keywords", "expected"),
    [
        ({"model": ""}, "ModelSpec: model is '', expected a non-empty string"),
        ({"model": 3}, "ModelSpec: model is 3, expected a non-empty string"),
        ({"quantization": None}, "ModelSpec: quantization is None, expected a non-empty string"),
        ({"revision": " "}, "ModelSpec: revision is ' ', expected a non-empty string"),
        ({"attention": True}, "ModelSpec: attention is True, expected a non-empty string"),
        ({"trust_remote_code": "yes"}, "ModelSpec: trust_remote_code is 'yes', expected True or False"),
        ({"adapter": "beside"}, "ModelSpec: adapter is 'beside', expected attached or merged"),
    ],
)
def test_wrong_fields_are_refused(keywords: dict[str, Any], expected: str) -> None:
    """Errors have the field's name and value."""
    with pytest.raises(UsageError) as caught:
        ModelSpec(**keywords)
    assert str(caught.value) == expected


def test_parse_refuses_other_types() -> None:
    """The error shows the value."""
    with pytest.raises(UsageError, match=r"llm parameter is 8, expected a quantization's name or a ModelSpec"):
        ModelSpec.parse(8)  # type: ignore[arg-type]


def test_defaults_fill_only_what_is_open() -> None:
    """Fields of the spec take precedence over the run's defaults."""
    defaults = ModelSpec(quantization="nf4").with_defaults(model="org/a", revision="v1", attention="eager")
    assert defaults == ModelSpec("org/a", "nf4", revision="v1", attention="eager")
    assert ModelSpec(attention="sdpa").with_defaults(model="org/a", attention="eager").attention == "sdpa"


def test_revision_and_trust_stay_with_the_default_model() -> None:
    """A revision names a commit of one model, and consent to run its code is given for one model."""
    asked: dict[str, Any] = {"model": "org/a", "revision": "v1", "trust_remote_code": True}
    assert ModelSpec("org/b").with_defaults(**asked) == ModelSpec("org/b")
    assert ModelSpec("org/a").with_defaults(**asked) == ModelSpec("org/a", revision="v1", trust_remote_code=True)


specs = st.builds(
    ModelSpec,
    model=st.none() | st.sampled_from(["org/a", "org/b", "synthetic:tiny"]),
    quantization=st.sampled_from(sorted(QUANTIZATIONS)),
    revision=st.none() | st.just("v1"),
    attention=st.none() | st.sampled_from(["eager", "sdpa"]),
    trust_remote_code=st.booleans(),
)


@given(spec=specs, model=st.sampled_from(["org/a", "org/c"]))
def test_filling_defaults_twice_changes_nothing(spec: ModelSpec, model: str) -> None:
    """So equal specs stay equal."""
    once = spec.with_defaults(model=model, revision="v2", attention="eager")
    assert once.with_defaults(model=model, revision="v2", attention="eager") == once
    assert hash(once) == hash(once.with_defaults(model=model))


def test_import_is_light() -> None:
    """Every module of the folder that collection uses is imported without torch or transformers."""
    names = ("spec", "quantization", "synthetic", "source", "tokenizer", "quiet", "weights", "load", "model_registry")
    imports = ", ".join(f"pytest_llmperf.models.{name}" for name in names)
    heavy = "{'torch', 'transformers', 'bitsandbytes', 'huggingface_hub', 'tokenizers'}"
    code = f"import {imports}; import sys; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "[]"
