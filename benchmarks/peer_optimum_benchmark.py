"""Measure bitsandbytes' quantization matrix on a CPU with optimum-benchmark, the peer tool.

The cells are those of bitsandbytes' ``inference_benchmark.py``: six weight formats by two batch sizes, 64 tokens in and
64 out. The peer needs an environment of its own (``requirements-peer.txt``); run this script with its Python::

    python benchmarks/peer_optimum_benchmark.py --model FOLDER --iterations 10 --warmup 10 --output results.json
"""

import argparse
import json
import os
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from optimum_benchmark import Benchmark, BenchmarkConfig, InferenceConfig, ProcessConfig, PyTorchConfig
from optimum_benchmark.logging_utils import setup_logging

TOKENS_IN = 64
TOKENS_OUT = 64
TARGETS = ("load_model", "prefill", "decode", "generate", "per_token")
PACKAGES = ("optimum-benchmark", "torch", "transformers", "bitsandbytes", "accelerate", "datasets", "huggingface_hub")
# The measuring process inherits these: no look-ups on a hub, no benchmark.log in the working directory.
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "LOG_LEVEL": "ERROR", "LOG_TO_FILE": "0"}


def bnb(torch_dtype: str, **quantization_config: Any) -> dict[str, Any]:
    """Return the backend options of one bitsandbytes configuration."""
    return {"torch_dtype": torch_dtype, "quantization_scheme": "bnb", "quantization_config": quantization_config}


NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "bfloat16"}
QUANTIZATIONS: dict[str, dict[str, Any]] = {
    "bf16": {"torch_dtype": "bfloat16"},
    "fp16": {"torch_dtype": "float16"},
    "nf4": bnb("bfloat16", **NF4, bnb_4bit_use_double_quant=False),
    "nf4-dq": bnb("bfloat16", **NF4, bnb_4bit_use_double_quant=True),
    "int8": bnb("float16", load_in_8bit=True, llm_int8_threshold=0.0),
    "int8-decomp": bnb("float16", load_in_8bit=True, llm_int8_threshold=6.0),
}


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder with config.json and model.safetensors")
    parser.add_argument("--iterations", type=int, default=10, help="measured generations a cell")
    parser.add_argument("--warmup", type=int, default=10, help="warm-up runs a cell")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--quantization", type=_names, default=list(QUANTIZATIONS), help="comma-separated names")
    parser.add_argument("--batch-sizes", type=_integers, default=[1, 8], help="comma-separated batch sizes")
    return parser.parse_args()


def _names(text: str) -> list[str]:
    """Parse comma-separated names of quantizations."""
    names = text.split(",")
    if unknown := set(names) - set(QUANTIZATIONS):
        raise argparse.ArgumentTypeError(f"unknown {sorted(unknown)}, expected some of {list(QUANTIZATIONS)}")
    return names


def _integers(text: str) -> list[int]:
    """Parse comma-separated integers."""
    return [int(number) for number in text.split(",")]


def benchmark_config(arguments: argparse.Namespace, quantization: str, batch_size: int) -> BenchmarkConfig:
    """Return the peer's configuration of one cell, as bitsandbytes' script composes it but for the device."""
    scenario = InferenceConfig(
        latency=True,
        memory=True,
        duration=0,
        iterations=arguments.iterations,
        warmup_runs=arguments.warmup,
        input_shapes={"batch_size": batch_size, "sequence_length": TOKENS_IN},
        generate_kwargs={"max_new_tokens": TOKENS_OUT, "min_new_tokens": TOKENS_OUT},
    )
    backend = PyTorchConfig(
        model=str(arguments.model.resolve()),  # a relative path would be looked up on a hub first
        library="transformers",
        task="text-generation",
        device="cpu",
        **QUANTIZATIONS[quantization],
    )
    launcher = ProcessConfig(start_method="spawn")
    return BenchmarkConfig(f"{quantization}-{batch_size}", scenario=scenario, backend=backend, launcher=launcher)


def measure(arguments: argparse.Namespace, quantization: str, batch_size: int) -> dict[str, Any]:
    """Run one cell and return what the peer reports of it, or the last line of its error."""
    try:
        report = Benchmark.launch(benchmark_config(arguments, quantization, batch_size)).to_dict()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}".strip().splitlines()[-1]}
    return {target: _latency(report[target]["latency"]) for target in TARGETS}


def _latency(latency: dict[str, Any]) -> dict[str, float]:
    """Return the statistics kept of one reported latency, in seconds."""
    return {"count": latency["count"], "mean_s": latency["mean"], "p50_s": latency["p50"], "stdev_s": latency["stdev"]}


def run_cell(arguments: argparse.Namespace, quantization: str, batch_size: int) -> dict[str, Any]:
    """Measure one cell, the wall time around all of it included."""
    started = time.perf_counter()
    measured = measure(arguments, quantization, batch_size)
    wall = time.perf_counter() - started
    return {"quantization": quantization, "batch_size": batch_size, "wall_s": wall, **measured}


def describe(cell: dict[str, Any]) -> str:
    """Return the line printed for a measured cell."""
    outcome = cell.get("error") or f"per-token p50 {cell['per_token']['p50_s'] * 1e3:.2f} ms"
    return f"{cell['quantization']:<12} batch {cell['batch_size']}  wall {cell['wall_s']:6.1f} s  {outcome}"


def run_conditions(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what the numbers depend on: versions, threads, model and settings."""
    return {
        "versions": {package: version(package) for package in PACKAGES},
        "threads": torch.get_num_threads(),
        "model": arguments.model.resolve().name,
        "iterations": arguments.iterations,
        "warmup": arguments.warmup,
        "tokens_in": TOKENS_IN,
        "tokens_out": TOKENS_OUT,
    }


def main() -> None:
    """Measure the matrix, writing the results after each cell."""
    arguments = parse_arguments()
    os.environ.update(ENVIRONMENT)
    setup_logging(level="ERROR")
    results: dict[str, Any] = {**run_conditions(arguments), "wall_s": 0.0, "cells": []}
    for batch_size in arguments.batch_sizes:
        for quantization in arguments.quantization:
            cell = run_cell(arguments, quantization, batch_size)
            results["cells"].append(cell)
            results["wall_s"] += cell["wall_s"]
            arguments.output.write_text(json.dumps(results, indent=2) + "\n")
            print(describe(cell), flush=True)


if __name__ == "__main__":
    main()
