"""What the quantization matrix costs: this plugin beside optimum-benchmark, in one run on one machine.

Six configurations by two batch sizes, 64 tokens in and out, ten measured generations a cell on both sides. The peer
needs an environment of its own, made from ``requirements-peer.txt``::

    python benchmarks/cost.py --peer-python PEER_ENVIRONMENT/bin/python
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from bare_loop import bare_decode
from transformers import AutoModelForCausalLM

from pytest_llmperf.models import synthetic
from pytest_llmperf.models.quantization import QUANTIZATIONS, compute_dtype

MATRIX = "bf16,fp16,nf4,nf4-dq,int8,int8-decomp"
BATCH_SIZES = "1,8"
REQUESTS = 10
TOKENS = 64


def main() -> None:
    """Run both tools on the matrix and print their costs and figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer-python", required=True, help="Python of the peer's environment")
    peer_python = parser.parse_args().peer_python
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = plain_copy(folder / "synthetic-32m")
        bare_before = bare_tpot_ms(model)
        ours_s, ours = run_ours(folder, MATRIX, BATCH_SIZES, "generate")
        _, ours_loop = run_ours(folder, "bf16", "1", "loop")
        bare_between = bare_tpot_ms(model)
        peer_s, peer = run_peer(peer_python, model, folder / "peer.json")
        bare_after = bare_tpot_ms(model)
    print(f"wall time of 12 cells: ours {ours_s:.0f} s, optimum-benchmark {peer_s:.0f} s: {peer_s / ours_s:.1f} times")
    print("bf16, batch 1, ms a token:")
    print(f"  bare loop {bare_before:.2f} before, {bare_between:.2f} between, {bare_after:.2f} after")
    print(f"  ours      {ours_loop['bf16', 1]:.2f} by loop, {ours['bf16', 1]:.2f} by generate")
    print(f"  peer      {peer['bf16', 1]['p50_ms']:.2f} median, {peer['bf16', 1]['mean_ms']:.2f} mean")
    print("cell: ours TPOT, peer per-token median, peer samples (63 gaps a request are 630)")
    for cell, tpot in ours.items():
        print(
            f"  {cell[0]:12} batch {cell[1]}: {tpot:7.2f} ms, {peer[cell]['p50_ms']:7.2f} ms, {peer[cell]['count']:.0f}"
        )


def plain_copy(folder: Path) -> Path:
    """The synthetic model without its tokenizer, which the peer's older transformers cannot read."""
    source = synthetic.prepare("synthetic:32m")
    folder.mkdir()
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        shutil.copy(source / name, folder / name)
    return folder


def bare_tpot_ms(model_folder: Path) -> float:
    """Median over requests of the bare loop's time per output token, after one warm-up request."""
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=compute_dtype(QUANTIZATIONS["bf16"], "cpu")).eval()
    prompt = torch.randint(3, 8000, (1, TOKENS), generator=torch.Generator().manual_seed(0))
    stamps = [bare_decode(model, prompt, TOKENS, time.perf_counter) for _ in range(REQUESTS + 1)][1:]
    return median(1e3 * (request[-1] - request[0]) / (TOKENS - 1) for request in stamps)


def run_ours(
    folder: Path, quantization: str, batch_sizes: str, execution: str
) -> tuple[float, dict[tuple[str, int], float]]:
    """Wall seconds of one run of the suite, and the TPOT of each cell in milliseconds."""
    cells = folder / f"ours-{execution}"
    command = [
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(folder)),
        *("--llmperf", "--device=cpu", "--pyargs", "pytest_llmperf.suite", f"--llmperf-json={cells}"),
        *(f"--llmperf-quantization={quantization}", f"--llmperf-batch-sizes={batch_sizes}"),
        *(f"--llmperf-execution={execution}", f"--llmperf-baselines={folder / 'baselines'}"),
        *(f"--llmperf-requests={REQUESTS}", f"--llmperf-input-tokens={TOKENS}", f"--llmperf-output-tokens={TOKENS}"),
    ]
    start = time.perf_counter()
    subprocess.run(command, check=True, cwd=folder)
    wall_s = time.perf_counter() - start
    results = [json.loads(path.read_text(encoding="utf-8"))["results"][0] for path in cells.glob("*.json")]
    found = {(r["workload"]["quantization"], r["workload"]["batch_size"]): value_of(r, "tpot_ms") for r in results}
    return wall_s, dict(sorted(found.items()))


def value_of(result: dict[str, Any], metric: str) -> float:
    """One figure of a test's result."""
    return next(float(cell["value"]) for cell in result["cells"] if cell["metric"] == metric)


def run_peer(python: str, model: Path, output: Path) -> tuple[float, dict[tuple[str, int], dict[str, float]]]:
    """Wall seconds of the peer's run, and what it reports of each cell."""
    script = Path(__file__).with_name("peer_optimum_benchmark.py")
    command = [python, str(script), "--model", str(model), "--output", str(output)]
    command += ["--iterations", str(REQUESTS), "--warmup", "10", "--quantization", MATRIX, "--batch-sizes", BATCH_SIZES]
    start = time.perf_counter()
    subprocess.run(command, check=True)
    wall_s = time.perf_counter() - start
    cells = json.loads(output.read_text(encoding="utf-8"))["cells"]
    return wall_s, {(cell["quantization"], cell["batch_size"]): _in_ms(cell["per_token"]) for cell in cells}


def _in_ms(latency: dict[str, float]) -> dict[str, float]:
    return {"p50_ms": 1e3 * latency["p50_s"], "mean_ms": 1e3 * latency["mean_s"], "count": latency["count"]}


if __name__ == "__main__":
    main()
