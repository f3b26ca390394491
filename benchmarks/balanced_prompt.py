"""How evenly prompts load the experts of tiny mixtures: random ids, evenly spaced ids, and ``balanced_prompt``.

Run it as ``python benchmarks/balanced_prompt.py [MIXTURE ...]``; it takes two minutes on two cores. It prints the
coefficient of variation of the experts' load, as the mean over layers and seeds: in prefill of the prompt, and for
balanced ids also in decode of the tokens that follow.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "models"))

from zoo import ZOO  # type: ignore[import-not-found]  # found by the line above

from pytest_llmperf.measure.balanced_prompt import balanced_ids, expert_loads, imbalance
from pytest_llmperf.measure.prompt import random_prompt

MIXTURES = ("mixtral", "qwen3_moe", "olmoe", "gpt_oss", "deepseek_v3", "phimoe")
SEEDS = range(5)
SEQUENCES, TOKENS = 2, 32


def main(names: list[str]) -> None:
    """Print a table with a row for each mixture."""
    print(f"{SEQUENCES} sequences of {TOKENS} tokens, {len(SEEDS)} seeds")
    print("| mixture | random ids | evenly spaced ids | balanced | decode after random | decode after balanced |")
    print("|---|---|---|---|---|---|")
    for name in names:
        rows = [_of_seed(_model(name), seed) for seed in SEEDS]
        means = (f"{fmean(column):.2f}" for column in zip(*rows, strict=True))
        print(f"| {name} | {' | '.join(means)} |")


def _model(name: str) -> Any:
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        ZOO[name].builder(Path(folder))
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)


def _of_seed(model: Any, seed: int) -> list[float]:
    drawn = random_prompt(model.config, batch_size=SEQUENCES, input_tokens=TOKENS, seed=seed)
    built = torch.tensor(balanced_ids(model, sequences=SEQUENCES, input_tokens=TOKENS, seed=seed))
    prefills = [imbalance(model, ids) for ids in (drawn, _spaced(model, seed), built)]
    return [*prefills, _decode(model, drawn), _decode(model, built)]


def _spaced(model: Any, seed: int) -> torch.Tensor:
    """Ids that are spaced evenly over the vocabulary, in random order."""
    count, size = SEQUENCES * TOKENS, model.config.get_text_config().vocab_size
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    spaced: torch.Tensor = order * size // count
    return spaced.reshape(SEQUENCES, TOKENS)


def _decode(model: Any, prompt: torch.Tensor) -> float:
    """The same for the tokens that greedy decoding appends."""
    ids = prompt
    with torch.inference_mode():
        for _ in range(TOKENS):
            ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
        loads = (expert_loads(model, ids) - expert_loads(model, prompt)).sum(dim=0)
    return float((loads.std(dim=1, correction=0) / loads.mean(dim=1)).mean())


if __name__ == "__main__":
    main(sys.argv[1:] or [*MIXTURES])
