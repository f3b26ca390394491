"""The documentation names only existing options, commands and metrics, and all of them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from pytest_llmperf.cli import _parser as cli_parser
from pytest_llmperf.metrics import METRICS
from pytest_llmperf.runner.options import SETTINGS
from pytest_llmperf.storage.baseline_file import load_baseline
from pytest_llmperf.storage.comparability import FIELDS
from pytest_llmperf.verdict.model import Outcome

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "baselines" / "README.md"]
ACTIONS = {"--llmperf-update", "--llmperf-force-update", "--llmperf-inject",
           "--llmperf-json", "--llmperf-only", "--llmperf-journal", "--llmperf-measure-only", "--llmperf-strict",
           "--llmperf-verdicts", "--llmperf-report", "--llmperf-screen", "--llmperf-device", "--llmperf-isolate",
           "--llmperf-tell", "--llmperf-profile", "--llmperf-trust-remote-code", "--llmperf-counted"}  # fmt: skip
COMMANDS = {"show", "merge", "record", "doctor", "export", "schema", "accept", "prune", "history", "ab", "gate",
            "bisect", "selftest", "report"}  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_option_and_command_that_is_named_exists(page):
    """No page names an option or command that does not exist."""
    text = page.read_text(encoding="utf-8")
    assert set(re.findall(r"--llmperf-[a-z-]+", text)) <= ACTIONS | {option.flag for option in SETTINGS}
    assert set(re.findall(r"`llmperf ([a-z]+)", text)) <= COMMANDS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_llmperf_command_that_is_shown_can_be_typed(page):
    """The argument parser accepts it with its options and number of arguments."""
    for line in re.findall(r"^ *(?:- run: |- )?(llmperf [a-z]+ .*)$", page.read_text(encoding="utf-8"), re.MULTILINE):
        own, _, rest = line.partition("  #")[0].partition(" -- ")
        options, more = cli_parser().parse_known_args(shlex.split(own)[1:])
        assert options.passes_on == "all" or not more, line
        assert options.passes_on or not rest, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_yaml_that_is_shown_can_be_read(page):
    """Users copy workflows from the pages."""
    for text in re.findall(r"^```yaml\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        assert isinstance(yaml.safe_load(text), dict | list)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_within_the_repository_leads_somewhere(page):
    """Relative links are existing files."""
    targets = re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_every_metric_and_outcome_is_explained():
    """The references of metrics and of verdicts are complete."""
    measuring = (ROOT / "docs" / "measuring.md").read_text(encoding="utf-8")
    families = {
        re.sub(r"^(load|prefill|decode|serving)_peak", "peak", re.sub(r"itl_p\d+", "itl_p", m.name))
        for m in METRICS.values()
    }
    assert [name for name in families if name.removeprefix("peak") not in measuring] == []
    verdicts = (ROOT / "docs" / "baselines.md").read_text(encoding="utf-8")
    assert [outcome for outcome in Outcome if f"`{outcome.value}`" not in verdicts] == []


def test_the_metrics_that_gate_are_those_that_are_told():
    """The help of ``--llmperf-gate`` and the README name them."""
    gating = {metric.name for metric in METRICS.values() if metric.gates}
    peaks = {f"{phase}_peak_allocated" for phase in ("load", "prefill", "decode", "serving")}
    timed = {"tpot", "output", "speedup", "call"}
    work = {f"prefill_{name}" for name in ("operators", "flops", "moved_bytes")}
    work |= {f"{name}_per_token" for name in ("operators", "flops", "moved_bytes")}
    counted = {
        "graph_breaks",
        "unique_graphs",
        "recompilations",
        "acceptance",
        "tokens_per_step",
    }
    on_cuda = {"kernel_launches_per_token", "syncs_per_token"}
    assert (
        gating
        == timed | work | counted | on_cuda | {"weights", "assistant_weights", "kv_cache", "graph_memory"} | peaks
    )


def test_the_blocking_fields_are_those_that_are_told():
    """Every field that prevents a comparison is documented."""
    told = {"method", "device_name", "device_type", "device_memory_bytes", "compute_capability", "mig", "ecc",
            "power_limit_w", "driver", "runtime", "cpu_model", "cpu_count", "torch_threads", "tracing", "python",
            "cuda_launch_blocking", "cublas_workspace", "cuda_allocator", "fp32_precision",
            "torch", "transformers", "bitsandbytes", "torchao", "vllm", "cpu_capability"}  # fmt: skip
    assert {name for name, weight in FIELDS.items() if weight == "blocks"} == told


def test_committed_baselines_can_be_read():
    """Files in baselines/ match the current schema."""
    for path in (ROOT / "baselines").glob("*.json"):
        assert load_baseline(path).device_key == path.stem
