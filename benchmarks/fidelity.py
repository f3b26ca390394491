"""How near the figure of ``execution="loop"`` is to a bare ten-line loop over the same model.

Both alternate in one process, in changing order; each alternation gives the ratio of the two medians::

    python benchmarks/fidelity.py [--alternations 24] [--quantization fp32,nf4]
"""

from __future__ import annotations

import argparse
from statistics import median, quantiles

import torch
from bare_loop import bare_decode

from pytest_llmperf import ModelSpec
from pytest_llmperf.measure.bench import Bench
from pytest_llmperf.measure.generation import Plan, measure_generation
from pytest_llmperf.measure.prompt import random_prompt
from pytest_llmperf.models.load import LoadedModel

REQUESTS = 1
PLAN = Plan(batch_size=1, input_tokens=64, output_tokens=64, execution="loop", requests=REQUESTS, warmup_cap=0)


def main() -> None:
    """Print, for each configuration, the median ratio ours / bare and its quartiles."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--alternations", type=int, default=24)
    parser.add_argument("--quantization", default="fp32,nf4")
    arguments = parser.parse_args()
    bench = Bench("cpu")
    for quantization in arguments.quantization.split(","):
        loaded = bench.models.get(ModelSpec("synthetic:32m", quantization))
        prompt = random_prompt(loaded.model.config, batch_size=1, input_tokens=64, seed=0)
        bare_tpot_ms(loaded, prompt)  # warms up
        ratios = [alternate(bench, loaded, prompt, ours_first=bool(turn % 2)) for turn in range(arguments.alternations)]
        low, middle, high = quantiles(ratios, n=4)
        print(
            f"{quantization}: ours / bare {middle:.4f}, quartiles {low:.4f} to {high:.4f}, {len(ratios)} alternations"
        )


def alternate(bench: Bench, loaded: LoadedModel, prompt: torch.Tensor, *, ours_first: bool) -> float:
    """One ratio, one of the two going first."""
    if ours_first:
        ours = our_tpot_ms(bench, loaded)
        return ours / bare_tpot_ms(loaded, prompt)
    bare = bare_tpot_ms(loaded, prompt)
    return our_tpot_ms(bench, loaded) / bare


def our_tpot_ms(bench: Bench, loaded: LoadedModel) -> float:
    """Median over requests of what a test would record."""
    found = measure_generation(loaded.model, PLAN, device=bench.device, clock=bench.clock)
    return median(tpot for times in found.requests if (tpot := times.tpot_ms) is not None)


def bare_tpot_ms(loaded: LoadedModel, prompt: torch.Tensor) -> float:
    """Median over requests of the bare loop."""
    stamps = [bare_decode(loaded.model, prompt, PLAN.output_tokens) for _ in range(REQUESTS)]
    return median(1e3 * (request[-1] - request[0]) / (len(request) - 1) for request in stamps)


if __name__ == "__main__":
    main()
