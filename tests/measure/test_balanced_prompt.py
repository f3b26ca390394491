"""Prompts that load the experts of a mixture evenly."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from statistics import fmean

import pytest

from pytest_llmperf.errors import UsageError
from pytest_llmperf.measure.balanced_prompt import MOST_STEPS, balanced_ids, expert_loads, imbalance
from pytest_llmperf.measure.prompt import random_prompt

torch = pytest.importorskip("torch")

MIXTURES = ("mixtral", "gpt_oss", "deepseek_v3")
SEEDS = range(3)


@pytest.fixture(scope="module")
def zoo():
    """The tiny checkpoints of the tests of models."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "models")
        from zoo import ZOO

        yield ZOO


@pytest.fixture(scope="module")
def mixture(zoo, tmp_path_factory):
    """Load a tiny mixture of the zoo once."""
    from transformers import AutoModelForCausalLM

    @cache
    def get(name):
        folder = tmp_path_factory.mktemp(name)
        zoo[name].builder(folder)
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)

    return get


@pytest.mark.parametrize("name", MIXTURES)
def test_experts_are_loaded_more_evenly_than_by_random_ids(mixture, name):
    """On average over seeds, the load's coefficient of variation is less than half of that of random ids."""
    model = mixture(name)
    built = [torch.tensor(balanced_ids(model, sequences=2, input_tokens=16, seed=seed)) for seed in SEEDS]
    drawn = [random_prompt(model.config, batch_size=2, input_tokens=16, seed=seed) for seed in SEEDS]
    assert fmean(imbalance(model, ids) for ids in built) < fmean(imbalance(model, ids) for ids in drawn) / 2


def test_loads_are_those_of_the_routers(mixture):
    """As hooks on the routers see them: two experts for each token."""
    model, seen = mixture("mixtral"), []
    ids = random_prompt(model.config, batch_size=3, input_tokens=5, seed=0)
    hooks = [
        layer.mlp.gate.register_forward_hook(lambda *given: seen.append(given[2][2])) for layer in model.model.layers
    ]
    with torch.inference_mode():
        loads = expert_loads(model, ids)
    for hook in hooks:
        hook.remove()
    assert loads.shape == (3, 2, 4)
    for layer, chosen in enumerate(seen):
        for sequence, experts in enumerate(chosen.reshape(3, -1)):
            assert loads[sequence, layer].tolist() == torch.bincount(experts, minlength=4).tolist()
    assert loads.sum().item() == 3 * 2 * 5 * 2


def test_the_same_seed_builds_the_same_prompt(mixture):
    """Another seed builds another; the ids are ordinary ones."""
    model = mixture("mixtral")
    first, again, other = (balanced_ids(model, sequences=1, input_tokens=8, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert {model.config.bos_token_id, model.config.eos_token_id}.isdisjoint(first[0])


def test_a_long_prompt_grows_by_several_tokens_a_step(mixture, monkeypatch):
    """The number of forwards is bounded, and the length is exact."""
    from pytest_llmperf.measure import balanced_prompt

    lengths = []
    monkeypatch.setattr(
        balanced_prompt, "expert_loads", lambda model, ids: lengths.append(ids.shape[1]) or expert_loads(model, ids)
    )
    (ids,) = balanced_ids(mixture("mixtral"), sequences=1, input_tokens=100)
    assert (len(ids), len(lengths), lengths[:2], lengths[-1]) == (100, 50, [2, 4], 100)
    assert len(lengths) <= MOST_STEPS


def test_a_dense_model_has_no_experts_to_balance(zoo, tmp_path):
    """It is refused in one line, and so is a length that is none."""
    from transformers import AutoModelForCausalLM

    zoo["llama"].builder(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(UsageError, match="LlamaForCausalLM reports no routers: expected a mixture of experts"):
        balanced_ids(model, sequences=1, input_tokens=4)
    with pytest.raises(UsageError, match="input_tokens=0: expected a whole number of at least 1"):
        balanced_ids(model, sequences=1, input_tokens=0)


TEST = """
import json
from pathlib import Path

import pytest

PROMPT = Path("prompt.json")

@pytest.mark.parametrize("llm", ["bf16"], indirect=True)
def test_mixture(llm, llmperf):
    if not PROMPT.exists():
        PROMPT.write_text(json.dumps(llmperf.balanced_prompt(llm, sequences=2, input_tokens=6)))
    ids = json.loads(PROMPT.read_text())
    llmperf.generate(llm, batch_size=2, prompt=ids)
    llmperf.serve(llm, scheduler="naive", requests=2, repeats=1, output_tokens=3, prompt=ids)
"""


def test_a_prompt_that_is_kept_is_measured_again(zoo, project):
    """By a test in generation and serving, and by the command line: each has the digest of the same ids."""
    zoo["mixtral"].builder(project.path / "mixtral")
    project.write(TEST, conftest="")
    arguments = ("--llmperf-model=./mixtral", "--llmperf-measure-only", "--llmperf-execution=loop")
    found = []
    for folder in ("first", "second"):
        result = project.run(*arguments, f"--llmperf-json={folder}")
        assert result.ret == 0, result.outlines
        entries = [json.loads(path.read_text()) for path in sorted((project.path / folder).glob("*.json"))]
        workloads = {one["execution"]: one for entry in entries for one in [entry["results"][0]["workload"]]}
        found.append({name: (one["input_tokens"], one["prompt_sha256"]) for name, one in workloads.items()})
    assert found[0] == found[1]
    assert [tokens for tokens, _ in found[0].values()] == [6, 6]
    project.write("def test_it(llm, llmperf): llmperf.generate(llm, batch_size=2)", conftest="")
    options = ("--llmperf-prompt=ids:prompt.json", "--llmperf-quantization=bf16", "--llmperf-json=third")
    assert project.run(*arguments, *options).ret == 0
    (entry,) = (json.loads(path.read_text()) for path in (project.path / "third").glob("*.json"))
    assert entry["results"][0]["workload"]["prompt_sha256"] == found[0]["generate"][1]
