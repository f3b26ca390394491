"""Declarations of all options. Every pytest run imports this module, so it imports next to nothing."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest


class Option:
    """A setting with a command-line option ``--llmperf-NAME`` and an ini option ``llmperf_NAME``.

    Creating this class costs each pytest run less than creating a dataclass or a named tuple.

    Attributes:
        flag: The command-line option.
        ini: The ini option, which is also argparse's name for the command line's value.
    """

    def __init__(self, name: str, metavar: str, default: str, help: str) -> None:  # noqa: A002  # as argparse calls it
        self.name = name
        self.metavar = metavar
        self.default = default
        self.help = help
        self.flag = f"--llmperf-{name}"
        self.ini = f"llmperf_{name.replace('-', '_')}"


SETTINGS = (
    Option("model", "NAME", "", "Model to measure: a hub name, a folder with safetensors, or synthetic:NAME "
           "(default: synthetic:32m on a CPU, synthetic:1b on an accelerator)"),
    Option("revision", "REV", "", "Revision of the model on the hub"),
    Option("adapter", "MODE", "", "How to load a model that is a PEFT adapter: attached to its base model, or merged "
           "into it (default: attached)"),
    Option("quantization", "NAMES", "", "Quantizations of the llm fixture in tests that do not parametrize it, "
           "comma-separated: bf16, fp16, fp32; nf4, nf4-dq, int8, int8-decomp of bitsandbytes; torchao-int8wo, "
           "torchao-int8dq, torchao-fp8wo, torchao-fp8dq, torchao-int4wo; or stored, that of a checkpoint which is "
           "quantized already (default: stored for such a checkpoint, else nf4,int8,int8-decomp)"),
    Option("attention", "NAMES", "", "Attention implementation, unless a test sets it: eager, sdpa, "
           "flash_attention_2, flex_attention, ...; several names, comma-separated, parametrize the tests that do not "
           "parametrize llm (default: the library's choice)"),
    Option("batch-sizes", "SIZES", "1,8,16,32", "Batch sizes of the ready-made suite, comma-separated"),
    Option("input-tokens", "LENGTHS", "64", "Prompt length, unless a test sets it; several, comma-separated, are an "
           "axis of the ready-made suite"),
    Option("prompt", "PROMPT", "random", "Prompt, unless a test sets it: random (token ids), text:WORDS, file:PATH, "
           "chat (a short one), chat:PATH (JSON messages) or ids:PATH (JSON lists of token ids); chats use the "
           "tokenizer's template. All except random determine the prompt length"),
    Option("output-tokens", "N", "", "Number of tokens to generate, unless a test sets it (default: 64; 8 on a fake "
           "device)"),
    Option("execution", "NAMES", "", "Executions of the ready-made suite, comma-separated: generate (the "
           "library's own loop), loop (a bare greedy loop), compile (torch.compile over a static cache), graph "
           "(CUDA graphs replayed over a static cache), lookup (generate with tokens looked up in the sequence), "
           "assisted (generate with the draft model of --llmperf-assistant); default: generate, on a fake device loop"),
    Option("assistant", "MODEL", "", "Draft model of the execution assisted, in bf16: a hub name, a folder or "
           "synthetic:NAME"),
    Option("compile-mode", "MODE", "default", "torch.compile mode of the execution compile: default, "
           "reduce-overhead, max-autotune, max-autotune-no-cudagraphs"),
    Option("dynamo", "SETTINGS", "", "torch._dynamo.config settings of the execution compile: "
           "NAME=VALUE,... such as capture_dynamic_output_shape_ops=true"),
    Option("fake", "GPU", "h100", "The GPU that the device fake-cuda stands for: a100-40, a100-80, h100, h200, b200, "
           "l4, l40s, rtx-4090, t4, or memory and compute capability of another, such as 48GiB:8.9"),
    Option("engine", "NAME", "transformers", "Engine that serves requests in tests that use the engine fixture: "
           "transformers, vllm (in this process), or openai (a server with the OpenAI protocol at --llmperf-base-url)"),
    Option("base-url", "URL", "", "URL of the server, such as http://127.0.0.1:8000/v1; a URL that ends with "
           "/chat/completions selects chats. OPENAI_API_KEY is sent to it, if set"),
    Option("schedulers", "NAMES", "naive,offline,online", "Schedulers of pytest_llmperf.suite.serving: naive (one "
           "request after another), offline (all at once), online (continuous batching of a limited size)"),
    Option("serve-requests", "N", "16", "Number of requests per scheduler, unless a test sets it"),
    Option("max-batch-size", "N", "8", "Maximum number of concurrent requests of the online scheduler, unless a "
           "test sets it"),
    Option("shared-prefix", "N", "0", "Number of tokens that all prompts of a serving test begin with, unless a test "
           "sets it; the rest of each prompt is new in every pass"),
    Option("rate", "N", "", "Arrival rate of the online scheduler in pytest_llmperf.suite.serving: requests per "
           "second, Poisson (default: all at once)"),
    Option("throughput-sequences", "N", "", "Number of sequences in the throughput test of "
           "pytest_llmperf.suite.serving (default: 256; 32 on a CPU)"),
    Option("throughput-lengths", "LOW-HIGH", "", "Range of prompt and output lengths in the throughput test, "
           "uniformly distributed (default: 100-1024; 16-64 on a CPU)"),
    Option("requests", "N", "10", "Timed requests per test and run"),
    Option("warmup", "N", "10", "Maximum number of warm-up requests per test; warm-up ends earlier when times "
           "are steady"),
    Option("guards", "NAMES", "all", "Guards that may make timed figures invalid, comma-separated: tenants, "
           "throttling, clocks, placement, load, disturbance; none only records the state of the machine"),
    Option("baselines", "DIR", "baselines", "Folder of the baseline files, one per device"),
    Option("anchor", "REVISION", "", "Compare also with the baseline at this git revision, so that small regressions "
           "cannot accumulate"),
    Option("gate", "METRICS", "", "Metrics that may fail a test, comma-separated, or none (default: tpot, output, "
           "speedup, call, weights, assistant_weights, kv_cache, graph_memory, the peaks of allocated memory, "
           "operators, FLOPs and moved bytes of the prefill and per token, acceptance, tokens_per_step, graph_breaks, "
           "unique_graphs and recompilations, and on CUDA kernel_launches_per_token and syncs_per_token)"),
    Option("tolerate", "LIMITS", "", "Accepted slowdown or growth: 3%% for every timed metric, or tpot:3%%,ttft:5%%"),
    Option("catch", "LIMITS", "", "Slowdown or growth that must be detected; a cell whose baseline cannot detect it is "
           "inconclusive"),
    Option("confirm", "N", "2", "Number of fresh processes that measure a possible regression again before its test "
           "may fail; 0 lets it fail at once"),
    Option("timeout", "SECONDS", "", "Time limit for loading a model and for a test's body; 0 for no limit (default: "
           "for the body, ten times the slowest run of the baseline)"),
    Option("explain", "on|off", "on", "Profile regressions in a fresh process to explain them, and profile recorded "
           "runs for comparison"),
    Option("fail-on", "OUTCOMES", "", "Additional outcomes that fail a test, comma-separated: inconclusive, new, "
           "missing, not_comparable, invalid, improved"),
    Option("baseline-ref", "REV", "", "Read the baseline from this git revision, so that a pull request cannot pass by "
           "editing it"),
)  # fmt: skip

PROCESS_OPTIONS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "--llmperf-screen": ("A possible regression is inconclusive and does not fail; llmperf gate decides it",
                         {"action": "store_true"}),
    "--llmperf-only": ("Run only this perf test, by its name in the baseline; may be repeated",
                       {"metavar": "TEST", "action": "append", "default": []}),
    "--llmperf-journal": ("Write the run's journal to this file, one JSON line per test", {"metavar": "FILE"}),
    "--llmperf-profile": ("With --llmperf-measure-only: profile one more request of each workload into this folder",
                          {"metavar": "DIR"}),
    "--llmperf-tell": ("Write phases and reports to this file as they occur, for --llmperf-isolate",
                       {"metavar": "FILE"}),
    "--llmperf-times-only": ("With --llmperf-measure-only: generate in warm-up and timed requests only, without counts",
                             {"action": "store_true"}),
    "--llmperf-requests-by-test": ("Numbers of timed and of warm-up requests of some tests: a JSON file",
                                   {"metavar": "FILE"}),
    "--llmperf-measure-only": ("Compare nothing; with --llmperf-update, append the run without judging it",
                               {"action": "store_true"}),
}  # fmt: skip
"""Options that one process of ours gives to another, and what they mean: ``--help`` leaves them out."""

LIMIT_RULES_INI = "llmperf_limits"

_ACTIONS = (
    "strict",
    "verdicts",
    "report",
    "update",
    "force_update",
    "inject",
    "only",
    "journal",
    "profile",
    "json",
    "measure_only",
    "times_only",
    "requests_by_test",
    "counted",
    "isolate",
    "tell",
)
"""Options that have no effect without ``--llmperf``."""


def add_options(parser: pytest.Parser) -> None:
    """Declare every option except ``--device``, which another plugin may own."""
    group = parser.getgroup("llmperf", "LLM inference performance regression")
    _declare(group, "--llmperf", action="store_true", help="Run the perf tests, and only these")
    _declare(group, "--llmperf-device", metavar="DEVICE", default=None,
                    help="Device to measure on: auto, cpu, cuda, cuda:N, xpu[:N] or mps (default: auto); several, "
                         "such as cuda:0,cuda:2, get one xdist worker each; fake-cpu, fake-cuda or fake-xpu count the "
                         "work of a model without weights on a device that is not here")  # fmt: skip
    parser.addini("llmperf_device", "Device to measure on", default="auto")
    for option in SETTINGS:
        _declare(group, option.flag, metavar=option.metavar, default=None, help=option.help)
        parser.addini(option.ini, option.help.replace("%%", "%"), default=option.default)
    parser.addini(LIMIT_RULES_INI, "Limits by test, one per line: REGEX => gate=tpot tolerate=tpot:3% catch=8%",
                  type="linelist", default=[])  # fmt: skip
    parser.addini(
        "llmperf_counted", "Count the work of each workload, and measure no times", type="bool", default=False
    )
    _add_actions(group)


def _declare(group: pytest.OptionGroup, flag: str, **more: Any) -> None:
    """Declare an option. Without its ``dest``, pytest would compare it with each option that exists."""
    group.addoption(flag, dest=flag.removeprefix("--").replace("-", "_"), **more)


def forgotten_flag(config: pytest.Config) -> str:
    """Return a given option that needs ``--llmperf``, which is missing; empty if there is none."""
    given = (name for name in _ACTIONS if config.getoption(f"llmperf_{name}"))
    return f"--llmperf-{next(given, '').replace('_', '-')}".removesuffix("--llmperf-")


def _add_actions(group: pytest.OptionGroup) -> None:
    _declare(group, "--llmperf-update", nargs="?", const="all", default="", metavar="all|new",
                    help="Append this run to the device's baseline; new: only cells that the baseline does not "
                         "have (default: all)")  # fmt: skip
    _declare(group, "--llmperf-force-update", action="store_true", help="Allow updating under CI")
    _declare(group, "--llmperf-trust-remote-code", action="store_true",
                    help="Run code that comes with the model of --llmperf-model")  # fmt: skip
    _declare(group, "--llmperf-inject", metavar="WHAT", action="append", default=[],
                    help="Inject a regression, to check that the gate can fail: multiply a metric ('tpot:+50%%'), or "
                         "slow down each forward: by matrix products ('work:+15%%'), a wait ('sleep:+15%%', "
                         "'sleep:2ms'), memory held during decode ('hold:64MiB') or smaller batches "
                         "('batch:-25%%')")  # fmt: skip
    _declare(group, "--llmperf-counted", action="store_true",
                    help="Count the work of each workload in one untimed request, and measure no times: the result "
                         "does not depend on the machine")  # fmt: skip
    _declare(group, "--llmperf-strict", action="store_true",
                    help="Fail on undecided cells: --llmperf-fail-on with all outcomes except improved")  # fmt: skip
    _declare(group, "--llmperf-verdicts", metavar="FILE", help="Write every verdict with its evidence as JSON")
    _declare(
        group, "--llmperf-report", metavar="FILE.html", help="Write an HTML page with verdicts, charts and history"
    )
    _declare(group, "--llmperf-isolate", action="store_true", help="Run the tests of each model in a fresh process")
    _declare(group, "--llmperf-json", metavar="DIR", help="Write one JSON file per workload, samples included")
    for option, (_, more) in PROCESS_OPTIONS.items():
        _declare(group, option, help=argparse.SUPPRESS, **more)
