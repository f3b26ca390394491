"""Wall time and peak memory of counting a large model on a fake GPU, one fresh process for each model and form.

Run it with a CUDA build of torch, which needs neither driver nor device. Results belong in docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256, "num_key_value_heads": 8,
         "max_position_embeddings": 131072, "tie_word_embeddings": False, "dtype": "bfloat16"}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "1B": LLAMA | {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
                   "head_dim": 64, "tie_word_embeddings": True},
    "8B": LLAMA | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
    "70B": LLAMA | {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
                    "num_attention_heads": 64},
    # 400 billion weights, 22 billion of them for each token: 176 experts, of which 8 are active.
    "400B mixture": {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "vocab_size": 151936,
                     "hidden_size": 5120, "moe_intermediate_size": 1536, "num_hidden_layers": 94, "head_dim": 128,
                     "num_attention_heads": 64, "num_key_value_heads": 4, "num_experts": 176,
                     "num_experts_per_tok": 8, "max_position_embeddings": 40960, "dtype": "bfloat16"},
}  # fmt: skip
"""Shapes of Llama 3.2 1B, Llama 3.1 8B and 70B, and of a mixture."""
FORMS = ("bf16", "nf4")
INPUT, OUTPUT = 64, 8
SHOWN = ("operators_per_token", "flops_per_token", "moved_bytes_per_token", "memory", "roofline_tpot")
KIB, MIB, GIB = 2**10, 2**20, 2**30


def count(folder: str, form: str, gpu: str, device: str) -> dict[str, Any]:
    """Count one model in this process; the times are of this process alone, imports included."""
    from pytest_llmperf import ModelSpec
    from pytest_llmperf.hardware.data_sheet import find_data_sheet
    from pytest_llmperf.measure.fake_bench import FakeBench
    from pytest_llmperf.measure.generation import Plan

    bench = FakeBench(device, find_data_sheet(gpu) if device == "fake-cuda" else None)
    plan = Plan(batch_size=1, input_tokens=INPUT, output_tokens=OUTPUT, execution="loop", requests=1, warmup_cap=0)
    with bench.computing():
        start = time.perf_counter()
        loaded = bench.models.get(ModelSpec(folder, form))
        built = time.perf_counter()
        result = bench.measure(loaded, plan, test="benchmark", run_id="benchmark")
    cells = {cell.metric: cell.value if cell.value is not None else cell.reason for cell in result.cells}
    return {
        "build_s": built - start,
        "count_s": time.perf_counter() - built,
        "rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB / MIB,
        "weights_gib": float(cells["weights_bytes"]) / GIB,
        **{name: cell for name, cell in cells.items() if name.startswith(SHOWN)},
    }


def main() -> None:
    """Print a row for each model and form."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpu", default="h100", help="data sheet")
    parser.add_argument("--device", default="fake-cuda", choices=["fake-cuda", "fake-cpu"])
    parser.add_argument("--models", nargs="+", default=[*MODELS], choices=[*MODELS])
    parser.add_argument("--one", nargs=2, metavar=("FOLDER", "FORM"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(count(options.one[0], options.one[1], options.gpu, options.device)))
        return
    packages = ("torch", "transformers", "bitsandbytes", "pytest-llmperf")
    print(", ".join(f"{name} {version(name)}" for name in packages), f"Python {sys.version.split()[0]}", sep=", ")
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models:
            Path(folder, "config.json").write_text(json.dumps(MODELS[name]), encoding="utf-8")
            for form in FORMS:
                _print_row(name, form, folder, options)


def _print_row(name: str, form: str, folder: str, options: argparse.Namespace) -> None:
    start = time.perf_counter()
    command = [sys.executable, __file__, "--gpu", options.gpu, "--device", options.device, "--one", folder, form]
    ended = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(ended.stdout.splitlines()[-1])
    wall_s = time.perf_counter() - start
    row = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in found.items()}
    print(f"{name} {form}: wall {wall_s:.1f} s, {row}", flush=True)


if __name__ == "__main__":
    main()
