"""Which models are mixtures of experts."""

from __future__ import annotations

from pathlib import Path

import pytest
from zoo import ZOO

from pytest_llmperf.models.experts import experts_implementation, has_experts

transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("mixtral", True), ("granitemoe", True), ("deepseek_v3", True), ("jamba", True), ("llama", False),
     ("gpt2", False), ("mamba", False)],
)  # fmt: skip
def test_a_mixture_is_found_by_its_config_or_its_modules(name: str, expected: bool, tmp_path: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(ZOO[name].build(tmp_path / name))
    assert has_experts(model) is expected


def test_the_implementation_is_recorded(tmp_path: Path) -> None:
    folder = ZOO["mixtral"].build(tmp_path / "mixtral")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, experts_implementation="eager")
    assert experts_implementation(model) == "eager"
    del model.config._experts_implementation_internal  # as in transformers before it had a choice
    assert experts_implementation(model) in ("unknown", "eager")
