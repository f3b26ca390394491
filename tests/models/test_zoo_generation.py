"""The zoo's generation configs, measured with ``generate``: what each does is recorded, or it is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ticking_clock import TickingClock
from zoo import GENERATION_CONFIGS, ZOO, Entry

from pytest_llmperf import ModelSpec
from pytest_llmperf.errors import ExecutionUnavailable, UsageError
from pytest_llmperf.measure.generation import Measurement, Plan, measure_generation
from pytest_llmperf.models.load import LoadedModel, load

OURS = {"sampling", "min-new-tokens", "no-cache", "max-time"}
REFUSED = {"beams": "num_beams=2", "several-sequences": "num_return_sequences=2", "stop-strings": "stop_strings="}
SINGLE = {"prompt-lookup", "early-exit"}
KEPT = set(GENERATION_CONFIGS) - OURS - set(REFUSED) - SINGLE - {"quantized-cache"}


def built(entry: Entry, folder: Path) -> LoadedModel:
    return load(ModelSpec(str(entry.build(folder / entry.name)), "fp32"), "cpu")


def measured(loaded: LoadedModel, *, batch_size: int = 2) -> Measurement:
    plan = Plan(batch_size=batch_size, input_tokens=12, output_tokens=5, execution="generate", requests=1, warmup_cap=0)
    return measure_generation(loaded.model, plan, device="cpu", clock=TickingClock())


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Measurement:
    """The measurement without a generation config."""
    return measured(built(ZOO["llama"], tmp_path_factory.mktemp("plain")))


def found(name: str, folder: Path, **options: Any) -> Measurement:
    return measured(built(ZOO[f"generation-{name}"], folder), **options)


@pytest.mark.parametrize("name", sorted(OURS))
def test_ours_change_nothing(plain: Measurement, tmp_path: Path, name: str) -> None:
    mine = found(name, tmp_path)
    assert (mine.counts, dict(mine.settings)) == (plain.counts, {})


@pytest.mark.parametrize("name", sorted(KEPT))
def test_settings_of_the_workload_are_recorded(tmp_path: Path, name: str) -> None:
    assert set(found(name, tmp_path).settings) == set(GENERATION_CONFIGS[name])


@pytest.mark.parametrize("name", sorted(SINGLE))
def test_assisted_decoding_takes_one_sequence(tmp_path: Path, name: str) -> None:
    loaded = built(ZOO[f"generation-{name}"], tmp_path)
    with pytest.raises(ExecutionUnavailable, match="use batch_size=1"):
        measured(loaded)
    assert set(measured(loaded, batch_size=1).settings) == set(GENERATION_CONFIGS[name])


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_others_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=f"^generation_config {REFUSED[name]}[^\n]*$"):
        found(name, tmp_path)


def test_a_quantized_cache_needs_its_package(tmp_path: Path) -> None:
    try:
        recorded = set(found("quantized-cache", tmp_path).settings)
    except UsageError as error:
        assert "cache_implementation=quantized: You need to install" in str(error)  # noqa: PT017  # if it is missing
    else:
        assert recorded == {"cache_implementation", "cache_config"}


def test_a_config_without_a_cache_has_one(tmp_path: Path) -> None:
    """MPT's ``config.json`` turns it off: the cache holds the prompt and all output tokens but the last."""
    entry = ZOO["mpt"]
    counts = measured(built(entry, tmp_path)).counts
    assert entry.cache is not None
    assert counts.cache is not None
    assert counts.cache.total_bytes == 2 * entry.cache(2, 12, 5)
