"""``--device fake-cpu``: perf tests without weights and without a device. CUDA has its tests in ``tests/cuda_fake``."""

from __future__ import annotations

import json

import pytest
import torch
from zoo import ZOO

FAKE = "--device=fake-cpu"
HERE = "test_perf.py"

DECODE = """
import pytest


@pytest.mark.parametrize("llm", ["fp32", "nf4"], indirect=True)
def test_decode(llm, llmperf):
    result = llmperf.generate(llm, batch_size=2, execution="loop")
    assert result.value("weights") > 100_000
"""

CHANGED = """
import pytest
import torch


@pytest.mark.parametrize("llm", ["fp32"], indirect=True)
def test_decode(llm, llmperf):
    hook = llm.model.model.norm.register_forward_hook(lambda module, args, output: {change})
    llmperf.generate(llm, batch_size=2)
"""


def changed(change: str) -> str:
    return CHANGED.replace("{change}", change)


def cells(project, run: int = -1) -> dict:
    stored = json.loads(project.baseline().read_text())
    last = stored["runs"][run]["run_id"]
    return {
        (cell["test"], cell["metric"]): (cell["value"], cell.get("reason", ""))
        for cell in stored["cells"]
        if cell["run"] == last
    }


@pytest.fixture
def recorded(project):
    """A baseline of unchanged code."""
    project.write(changed("output"))
    assert project.run(FAKE, "--llmperf-update").ret == 0
    return project


# What is counted


def test_a_fake_device_counts_what_a_device_does(project):
    """The same figures, by the same tests; no weights are made, and times are absent."""
    project.write(DECODE)
    project.run("--llmperf-counted", "--llmperf-update", "--llmperf-baselines=real")
    assert project.run(FAKE, "--llmperf-update").ret == 0
    fake = cells(project)
    (project.path / "baselines").rename(project.path / "fake")
    (project.path / "real").rename(project.path / "baselines")
    real = cells(project)
    assert {key: fake.get(key) for key in real} == real
    more = {metric for _, metric in fake} - {metric for _, metric in real}
    assert more >= {f"{phase}_peak_allocated_bytes" for phase in ("load", "prefill", "decode")}
    assert not any(metric.endswith(("_ms", "_per_s", "_rss_bytes", "_reserved_bytes")) for _, metric in fake)


def test_the_summary_says_what_it_is(project):
    project.write(DECODE)
    result = project.run(FAKE)
    assert result.ret == 0
    result.stdout.fnmatch_lines([
        "llmperf: device fake-cpu, *",
        "*llmperf: fake-cpu*",
        "test * operators / token *",
        "times were not measured: a fake device only counts",
        "llmperf: 2 tests, 0 of * gating cells decided: * new. Nothing was verified.",
        "to verify: llmperf record --counted *--llmperf-device=fake-cpu*",
    ])  # fmt: skip


def test_the_environment_is_that_of_the_fake_device(project):
    """It holds versions, and nothing of the machine's processor."""
    project.write()
    project.run(FAKE, "--llmperf-update")
    assert project.baseline().name == "fake-cpu.json"
    environment = json.loads(project.baseline().read_text())["runs"][0]["environment"]
    assert (environment["device_type"], environment["device_name"]) == ("fake-cpu", "fake cpu")
    assert environment["torch"] == torch.__version__
    assert not {"cpu_model", "cpu_count", "torch_threads"} & set(environment)


def test_a_second_run_is_decided(recorded):
    result = recorded.run(FAKE, "--llmperf-strict")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["llmperf: 1 test, * of * gating cells decided: * unchanged"])
    assert "0 of" not in result.stdout.str()


def test_defaults_are_for_a_fake_device(project):
    """Eight tokens of ``loop``; what a test or an option says holds."""
    project.write()
    arguments = ("--llmperf", FAKE, "--llmperf-model=synthetic:tiny", "--llmperf-update")
    project.pytester.runpytest_inprocess(*arguments)
    (workload,) = json.loads(project.baseline().read_text())["workloads"].values()
    assert (workload["execution"], workload["output_tokens"], workload["input_tokens"]) == ("loop", 8, 64)
    project.baseline().unlink()
    project.pytester.runpytest_inprocess(*arguments, "--llmperf-output-tokens=3")
    (workload,) = json.loads(project.baseline().read_text())["workloads"].values()
    assert workload["output_tokens"] == 3


def test_isolated_and_distributed_runs_count_the_same(recorded):
    for way in ("--llmperf-isolate", "-n1"):
        result = recorded.run(FAKE, "--llmperf-strict", way)
        assert result.ret == 0, way


def test_the_ready_made_suite_runs_on_a_config_alone(project):
    source = ZOO["llama"].build(project.path / "whole")
    folder = project.path / "alone"
    folder.mkdir()
    (source / "config.json").rename(folder / "config.json")
    project.write("")
    arguments = (
        "--pyargs", "pytest_llmperf.suite", FAKE, "--llmperf-model=alone", "--llmperf-quantization=bf16,nf4",
        "--llmperf-batch-sizes=1,2",
    )  # fmt: skip
    project.run(*arguments).assert_outcomes(passed=4)


# What changed is found


CHANGES = {
    "an extra copy": ("output.clone()", "operators_per_token"),
    "an upcast": ("output.double().float()", "moved_bytes_per_token"),
    "a product": ("(output @ output.new_empty(64, 64) * 0 + output)", "flops_per_token"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_changed_work_fails_the_test(recorded, what):
    change, metric = CHANGES[what]
    recorded.write(changed(change))
    result = recorded.run(FAKE)
    assert result.ret == 1
    result.stdout.fnmatch_lines([f"FAILED {HERE}::test_decode*"])
    assert metric in result.stdout.str()


def test_a_leak_fails_the_test(recorded):
    """32 MiB for each token, above the floor of memory peaks."""
    recorded.write(
        changed("module.__dict__.setdefault('kept', []).append(torch.empty(1 << 25, dtype=torch.uint8)) or output")
    )
    result = recorded.run(FAKE)
    assert result.ret == 1
    assert "decode_peak_allocated" in result.stdout.str()


def test_a_model_that_reads_back_is_no_pass(recorded):
    """Its cells are missing, with the line that reads; strict runs fail."""
    recorded.write(changed("output * output.sum().item()"))
    result = recorded.run(FAKE)
    line = f"{HERE}:7 reads a value back (aten::_local_scalar_dense), and a fake device has none"
    result.stdout.fnmatch_lines([f"not counted: {HERE}::test_decode[[]fp32[]]: */{line}"])
    assert "unchanged" in result.stdout.str()  # the weights
    assert recorded.run(FAKE, "--llmperf-fail-on=missing").ret == 1


# Models of the user


OWN = """
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

SHAPE = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=512)


@pytest.fixture
def model(llmperf):
    with torch.device(llmperf.device):
        return AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE), dtype=torch.float32).eval()


def test_own(llmperf, model):
    result = llmperf.generate(model, name="own")
    assert result.value("operators_per_token") > 50
    assert result.value("load_peak_allocated") is None
"""


def test_a_model_that_a_test_builds_has_no_values_either(project):
    project.write(OWN)
    project.run(FAKE).assert_outcomes(passed=1)


def test_a_model_with_values_is_counted_as_it_is(project):
    """One that was built before the tests, such as when a module was imported."""
    built = "\nMODEL = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE), dtype=torch.float32).eval()\n"
    head, _, tail = OWN.partition("\n\n@pytest.fixture")
    project.write(head + built + tail[tail.index("def test_own") :].replace("llmperf, model", "llmperf").replace(
        "generate(model", "generate(MODEL"
    ))  # fmt: skip
    project.run(FAKE).assert_outcomes(passed=1)


# What needs a device is skipped


NEEDS = {
    "llmperf.generate(llm, execution='generate')": "execution 'generate' needs values, which a fake device does not*",
    "llmperf.generate(llm, execution='compile')": "execution 'compile' needs values, *",
    "llmperf.serve(llm)": "how an engine serves requests needs a device, and 'fake-cpu' is none: *",
    "llmperf.balanced_prompt(llm)": "a balanced prompt needs a device, *",
    "peak_memory()": "peak_memory needs a device, *",
    "cuda_timer(print)": "the time of a call needs a device, *",
}


@pytest.mark.parametrize("what", NEEDS)
def test_what_needs_values_is_skipped_with_the_reason(project, what):
    fixtures = [name for name in ("cuda_timer", "peak_memory") if name in what]
    project.write(f"""
import pytest

@pytest.mark.parametrize("llm", ["fp32"], indirect=True)
def test_it({", ".join(["llm", "llmperf", *fixtures])}):
    {what}
""")
    result = project.run(FAKE, "-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines([f"SKIPPED * {NEEDS[what]}"])


# Bad input, a line each


def refused(project, *arguments: str) -> str:
    project.write()
    result = project.run(*arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (line,) = [line for line in result.errlines if line.startswith("ERROR: ")]
    return line


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch is a CUDA build")
def test_another_kind_needs_another_build(project):
    line = refused(project, "--device=fake-cuda")
    assert line.startswith(f"ERROR: device 'fake-cuda' needs torch built for cuda, found {torch.__version__}: ")
    assert "device 'fake-xpu' needs torch built for xpu" in refused(project, "--device=fake-xpu")


def test_unknown_devices_are_refused(project):
    assert "unknown device 'fake-tpu'" in refused(project, "--device=fake-tpu")
    assert "--llmperf-fake 'h1000': unknown device" in refused(project, "--device=fake-cuda", "--llmperf-fake=h1000")
    assert "--llmperf-fake h100: device 'fake-cpu' stands for no GPU" in refused(project, FAKE, "--llmperf-fake=h100")


def test_an_engine_with_its_own_model_is_refused(project):
    line = refused(project, FAKE, "--llmperf-engine=openai", "--llmperf-base-url=http://127.0.0.1:9/v1")
    assert "--llmperf-engine openai on device 'fake-cpu'" in line


def test_what_is_injected_must_not_take_time(project):
    project.write()
    result = project.run(FAKE, "--llmperf-inject=sleep:2ms")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*--llmperf-inject sleep:2ms: requests on a fake device take no time: *"])


def test_a_factor_may_be_injected(recorded):
    result = recorded.run(FAKE, "--llmperf-inject=operators_per_token:+50%")
    assert result.ret == 1
    assert "operators / token" in result.stdout.str()
