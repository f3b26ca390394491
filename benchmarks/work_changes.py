"""Whether counting alone finds and names changes of work: twelve of real kinds, each beside the same model without it.

A tiny Llama, a tiny mixture and a quantized Llama decode in this process. Each change is a small patch of the model.
For each, the metrics that grew (those that gate by default first) and the explanation are printed. Requests without a
change must count the same each time. The script fails if a change is not found, or if an unchanged request differs::

    python benchmarks/work_changes.py [--unchanged 200]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch.nn import functional
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from pytest_llmperf import ModelSpec
from pytest_llmperf.engines.executions.execution import unnoticed
from pytest_llmperf.engines.executions.greedy_loop import greedy_loop
from pytest_llmperf.measure.work import count_work
from pytest_llmperf.metrics import METRICS
from pytest_llmperf.models.load import load
from pytest_llmperf.report.work_text import work_line
from pytest_llmperf.storage.schema import PhaseWork
from pytest_llmperf.verdict.time_change import Phase
from pytest_llmperf.verdict.work_change import COUNTED_METRICS, WorkChange, work_change

INPUT_TOKENS, OUTPUT_TOKENS, BATCH_SIZE = 16, 9, 5
MULTIPLE = 8
"""Batches are padded to a multiple of this by the change that pads more."""
SHAPE = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}

Work = Mapping[str, PhaseWork]
Patch = Callable[[Any], None]


@dataclass(frozen=True)
class WorkPatch:
    """A change of a model's work."""

    name: str
    patch: Patch
    """Changes a model in place."""
    model: Callable[[], Any]
    """Builds the model without the change."""


def llama() -> Any:
    """A Llama with seeded random weights."""
    return _seeded(LlamaForCausalLM, LlamaConfig(**SHAPE))


def mixture() -> Any:
    """A Mixtral of four experts, of which each token needs two."""
    config = MixtralConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2)
    # Its work does not depend on which experts the tokens need.
    config._experts_implementation = "batched_mm"  # noqa: SLF001  # as from_pretrained(experts_implementation=)
    return _seeded(MixtralForCausalLM, config)


def quantized() -> Any:
    """A Llama whose linear layers are in nf4."""
    return load(ModelSpec("synthetic:tiny", "nf4"), "cpu").model


def _seeded(kind: Any, config: Any) -> Any:
    torch.manual_seed(0)
    return kind(config).eval()


def upcast(model: Any) -> None:
    """Each norm computes in float64."""
    for module in _norms(model):
        _around(module, lambda forward, hidden: forward(hidden.to(torch.float64)).to(hidden.dtype))


def extra_copy(model: Any) -> None:
    """The output of each MLP is copied."""
    for layer in model.model.layers:
        _around(layer.mlp, lambda forward, hidden: forward(hidden).clone())


def lost_cache(model: Any) -> None:
    """Each step computes all tokens again."""
    seen: list[Any] = []

    def without_cache(forward: Any, input_ids: Any = None, **more: Any) -> Any:
        past = more.pop("past_key_values", None)
        seen[:] = [input_ids] if past is None else [torch.cat([*seen, input_ids], dim=1)]
        more.pop("position_ids", None)
        more["logits_to_keep"] = 1
        return forward(input_ids=seen[0], past_key_values=DynamicCache(config=model.config), **more)

    _around(model, without_cache)


def all_logits(model: Any) -> None:
    """The prefill computes the logits of the whole prompt."""
    _around(model, lambda forward, *args, **more: forward(*args, **{**more, "logits_to_keep": 0}))


def dequantized_layer(model: Any) -> None:
    """One linear layer is no longer quantized."""
    from bitsandbytes.functional import dequantize_4bit

    old = model.model.layers[0].mlp.down_proj
    weight = dequantize_4bit(old.weight.data, old.weight.quant_state)
    new = torch.nn.Linear(old.in_features, old.out_features, bias=False, dtype=weight.dtype)
    new.weight = torch.nn.Parameter(weight, requires_grad=False)
    model.model.layers[0].mlp.down_proj = new


def eager_attention(model: Any) -> None:
    """Attention is computed step by step."""
    model.set_attn_implementation("eager")


def one_more_norm(model: Any) -> None:
    """The queries of one layer are normalized."""
    attention = model.model.layers[0].self_attn
    norm = torch.nn.RMSNorm(SHAPE["hidden_size"])
    _around(attention.q_proj, lambda forward, hidden: norm(forward(hidden)))


def synchronization(model: Any) -> None:
    """Each step reads a value back to the host."""

    def reading(forward: Any, *args: Any, **more: Any) -> Any:
        found = forward(*args, **more)
        float(found.logits[0, -1, 0])
        return found

    _around(model, reading)


def bigger_pad(model: Any) -> None:
    """The batch is padded to the next multiple of eight."""

    def padded(forward: Any, input_ids: Any = None, **more: Any) -> Any:
        rows = input_ids.shape[0]
        found = forward(input_ids=functional.pad(input_ids, (0, 0, 0, -rows % MULTIPLE)), **more)
        found.logits = found.logits[:rows]
        return found

    _around(model, padded)


def leaked_tensor(model: Any) -> None:
    """The hidden states of all steps are kept in one tensor."""
    kept: list[Any] = []

    def keeping(forward: Any, hidden: Any) -> Any:
        kept[:] = [torch.cat([*kept, hidden], dim=1)]
        return forward(hidden)

    _around(model.lm_head, keeping)


def slower_mask(model: Any) -> None:
    """A mask of numbers is built in each step, where a causal flag sufficed."""

    def masked(forward: Any, input_ids: Any = None, **more: Any) -> Any:
        past = more.get("past_key_values")
        held = past.get_seq_length() if past is not None else 0
        new = input_ids.shape[1]
        mask = torch.full((new, held + new), float("-inf")).triu(held + 1)
        return forward(input_ids=input_ids, attention_mask=mask[None, None], **more)

    _around(model, masked)


def dense_experts(model: Any) -> None:
    """Each token runs all experts."""
    for layer in model.model.layers:
        layer.mlp.gate.top_k = layer.mlp.gate.num_experts


PATCHES = (
    WorkPatch("an upcast", upcast, llama),
    WorkPatch("an extra copy", extra_copy, llama),
    WorkPatch("a lost cache", lost_cache, llama),
    WorkPatch("logits of the whole prompt", all_logits, llama),
    WorkPatch("a dequantized layer", dequantized_layer, quantized),
    WorkPatch("eager for sdpa", eager_attention, llama),
    WorkPatch("one more norm", one_more_norm, llama),
    WorkPatch("a synchronization", synchronization, llama),
    WorkPatch("a bigger batch pad", bigger_pad, llama),
    WorkPatch("a leaked tensor", leaked_tensor, llama),
    WorkPatch("a slower mask", slower_mask, llama),
    WorkPatch("dense experts", dense_experts, mixture),
)


def main() -> None:
    """Print what was found of each change, and how many unchanged requests differed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--unchanged", type=int, default=20, help="requests without a change")
    unchanged = parser.parse_args().unchanged
    found = sum(_is_found(patch) for patch in PATCHES)
    print(f"found: {found} of {len(PATCHES)}")
    alarms = sum(_alarms(build, unchanged) for build in (llama, mixture, quantized))
    print(f"alarms: {alarms} of {3 * unchanged} requests without a change")
    sys.exit(int(found < len(PATCHES) or alarms > 0))


def _is_found(patch: WorkPatch) -> bool:
    """Print what counting says of a change; whether a metric that gates by default grew."""
    clean, changed = patch.model(), patch.model()
    patch.patch(changed)
    changes = list(compared(counted(clean), counted(changed)))
    grown = [metric for change in changes for metric in grown_metrics(change)]
    gating = [metric for metric in grown if metric in METRICS and METRICS[metric].gates]
    others = [metric for metric in grown if metric not in gating]
    print(f"{patch.name}: {', '.join(gating) or 'NOT FOUND'}" + (f" (also {', '.join(others)})" if others else ""))
    for change in changes:
        if not change.is_equal:
            print(f"    {work_line(change)}")
    return bool(gating)


def _alarms(build: Callable[[], Any], requests: int) -> int:
    """How many of so many requests count otherwise than the first."""
    model = build()
    first = counted(model)
    return sum(not all(change.is_equal for change in compared(first, counted(model))) for _ in range(requests))


def counted(model: Any) -> Work:
    """The work of one request, after one that is not counted: bitsandbytes repacks weights at their first use."""
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(0, SHAPE["vocab_size"], (BATCH_SIZE, INPUT_TOKENS), generator=generator)
    with torch.inference_mode():
        greedy_loop(model, prompt, OUTPUT_TOKENS, unnoticed)
        with count_work() as count:
            greedy_loop(model, prompt, OUTPUT_TOKENS, count.on_token)
    return count.phases()


def compared(before: Work, after: Work) -> Iterator[WorkChange]:
    """The change of each phase."""
    phases: tuple[Phase, ...] = ("prefill", "decode")
    for phase in phases:
        yield work_change(before[phase], after[phase], workload="", phase=phase)


def grown_metrics(change: WorkChange) -> list[str]:
    """Keys of the counted metrics that are larger after a change."""
    named = {"operators": "operators", "flops": "flops", "bytes": "moved_bytes"}
    totals = [named.get(one.name, one.name) for one in change.totals if one.difference > 0]
    growth = [f"{named.get(one.name, one.name)}_growth" for one in change.growth if one.difference > 0]
    keys = [f"prefill_{name}" if change.phase == "prefill" else f"{name}_per_token" for name in totals]
    return [key for key in [*keys, *growth] if key in COUNTED_METRICS[change.phase]]


def _norms(model: Any) -> list[Any]:
    return [module for module in model.modules() if type(module).__name__.endswith("RMSNorm")]


def _around(module: Any, wrapper: Callable[..., Any]) -> None:
    """Let a module's forward be called by a wrapper, which gets it as its first argument."""
    forward = module.forward

    @wraps(forward)
    def wrapped(*args: Any, **more: Any) -> Any:
        return wrapper(forward, *args, **more)

    module.forward = wrapped


if __name__ == "__main__":
    main()
