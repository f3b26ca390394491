"""How near the figure of ``execution="loop"`` is to a bare ten-line loop over the same model.

Both alternate in one process, in changing order; each alternation gives the ratio of the two medians::

    python benchmarks/fidelity.py [--alternations 24] [--quantization fp32,nf4] [--device cpu] [--model synthetic:32m]
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from statistics import median, quantiles

import torch
from bare_loop import bare_decode

from pytest_llmperf import ModelSpec
from pytest_llmperf.measure.bench import Bench
from pytest_llmperf.measure.generation import Plan, measure_generation
from pytest_llmperf.measure.prompt import random_prompt
from pytest_llmperf.models.load import LoadedModel

PLAN = Plan(batch_size=1, input_tokens=64, output_tokens=64, execution="loop", requests=1, warmup_cap=0)


def main() -> None:
    """Print, for each configuration, the median ratio ours / bare and its quartiles."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--alternations", type=int, default=24)
    parser.add_argument("--quantization", default="fp32,nf4")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", default="synthetic:32m")
    arguments = parser.parse_args()
    for quantization in arguments.quantization.split(","):
        ratios = ratios_of(arguments.device, arguments.model, quantization, arguments.alternations)
        low, middle, high = quantiles(ratios, n=4)
        print(
            f"{quantization}: ours / bare {middle:.4f}, quartiles {low:.4f} to {high:.4f}, {len(ratios)} alternations"
        )


def ratios_of(
    device: str, model: str, quantization: str, alternations: int, output_tokens: int = PLAN.output_tokens
) -> list[float]:
    """Ours / bare, one an alternation."""
    plan = replace(PLAN, output_tokens=output_tokens)
    bench = Bench(device)
    loaded = bench.models.get(ModelSpec(model, quantization))
    prompt = random_prompt(loaded.model.config, batch_size=1, input_tokens=PLAN.input_tokens, seed=0).to(bench.device)
    bare_tpot_ms(bench, loaded, prompt, plan)  # warms up
    ratios = [alternate(bench, loaded, prompt, plan, ours_first=bool(turn % 2)) for turn in range(alternations)]
    bench.release()
    return ratios


def alternate(bench: Bench, loaded: LoadedModel, prompt: torch.Tensor, plan: Plan, *, ours_first: bool) -> float:
    """One ratio, one of the two going first."""
    if ours_first:
        ours = our_tpot_ms(bench, loaded, plan)
        return ours / bare_tpot_ms(bench, loaded, prompt, plan)
    bare = bare_tpot_ms(bench, loaded, prompt, plan)
    return our_tpot_ms(bench, loaded, plan) / bare


def our_tpot_ms(bench: Bench, loaded: LoadedModel, plan: Plan) -> float:
    """Median over requests of what a test would record."""
    found = measure_generation(loaded.model, plan, device=bench.device, clock=bench.clock)
    return median(tpot for times in found.requests if (tpot := times.tpot_ms) is not None)


def bare_tpot_ms(bench: Bench, loaded: LoadedModel, prompt: torch.Tensor, plan: Plan) -> float:
    """One request of the bare loop, by the same clock."""
    stamps = bare_decode(loaded.model, prompt, plan.output_tokens, bench.clock.stamp)
    bench.clock.synchronize()
    return bench.clock.elapsed_ms(stamps[0], stamps[-1]) / (len(stamps) - 1)


if __name__ == "__main__":
    main()
