"""A user's project whose own code builds the models that its perf tests measure, or changes the one that was loaded."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_llmperf.storage.baseline_file import load_baseline
from pytest_llmperf.storage.schema import Workload

QUIET_MACHINE = (1.0, 1.01, 0.99, 1.0, 1.005)

BUILT = """
import pytest, torch
from transformers import LlamaConfig, LlamaForCausalLM

def build(**changes):
    torch.manual_seed(0)
    base = dict(
        vocab_size=128, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    )
    return LlamaForCausalLM(LlamaConfig(**base | changes)).eval()

@pytest.fixture
def model():
    return build()
"""

ONE = (
    BUILT
    + """
def test_mine(model, llmperf):
    llmperf.generate(model, name="mine", revision="v2")
"""
)

MODULE = """
import pytest, torch
from types import SimpleNamespace

class Recurrent(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.gru = torch.nn.Embedding(128, 64), torch.nn.GRU(64, 64, batch_first=True)
        self.head = torch.nn.Linear(64, 128)

    def forward(self, input_ids, past_key_values=None, use_cache=False):
        hidden, state = self.gru(self.embed(input_ids), past_key_values)
        return SimpleNamespace(logits=self.head(hidden), past_key_values=state)

@pytest.fixture
def model():
    torch.manual_seed(0)
    return Recurrent().eval()
"""

CHANGED = """
import pytest, torch

class Adapted(torch.nn.Module):
    def __init__(self, base, rank=64):
        super().__init__()
        self.base = base
        self.down = torch.nn.Linear(base.in_features, rank, bias=False)
        self.up = torch.nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))

@pytest.mark.parametrize("llm", ["fp32"], indirect=True)
def test_decode(llm, llmperf):
    CHANGE
    llmperf.generate(llm)
"""
ADAPT = "layer = llm.model.model.layers[0].mlp; layer.up_proj = Adapted(layer.up_proj)"


def recorded(project: Any) -> tuple[list[Workload], dict[str, dict[str, Any]]]:
    """Return the workloads of the baseline, and each test's values by metric."""
    baseline = load_baseline(project.baseline())
    values: dict[str, dict[str, Any]] = {}
    for cell in baseline.cells:
        values.setdefault(cell.test.partition("::")[2], {})[cell.metric] = cell
    return [*baseline.workloads.values()], values


def measured(project: Any, *arguments: str) -> tuple[list[Workload], dict[str, dict[str, Any]]]:
    result = project.run("--llmperf-measure-only", "--llmperf-update", *arguments)
    assert result.ret == 0, result.outlines
    return recorded(project)


def test_a_model_that_a_fixture_builds_is_measured(project):
    """By every execution; what identifies it is part of the workload, and its load time is unknown."""
    project.write(
        BUILT
        + """
@pytest.mark.parametrize("execution", [None, "loop"])
def test_mine(model, llmperf, execution):
    assert llmperf.device == "cpu"
    llmperf.generate(model.to(llmperf.device), name="mine", revision="v2", execution=execution)
"""
    )
    workloads, values = measured(project)
    assert {(one.model, one.revision, one.quantization, one.attention) for one in workloads} == {
        ("mine", "v2", "fp32", "sdpa")
    }
    assert {one.execution for one in workloads} == {"generate", "loop"}
    for found in values.values():
        assert found["tpot_ms"].value == 1.0
        assert found["weights_bytes"].value > 4 * 128 * 64
        for unknown in ("load_ms", "load_peak_allocated_bytes", "load_peak_rss_bytes"):
            assert (found[unknown].value, found[unknown].reason) == (None, "the test built the model itself")


def test_a_torch_module_is_measured_by_the_loop(project):
    """Without a revision, and without a config."""
    project.write(MODULE + "\ndef test_mine(model, llmperf):\n    llmperf.generate(model, name='gru')\n")
    (workload,), values = measured(project)
    assert (workload.model, workload.revision, workload.execution) == ("gru", None, "loop")
    assert (workload.dtype, workload.attention) == ("float32", "unknown")
    found = values["test_mine"]
    assert found["weights_bytes"].value == 4 * (2 * 128 * 64 + 2 * 3 * 64 * 64 + 2 * 3 * 64 + 128)
    assert found["operators_per_token"].value >= 4  # embedding, GRU, head and argmax
    assert found["bandwidth_share"].value is None


@pytest.mark.parametrize("how", [(), ("-n1", "--llmperf-isolate")], ids=["plain", "workers"])
def test_its_regression_is_confirmed_in_fresh_processes(project, how):
    """They build the model again."""
    project.write(ONE)
    project.record(*QUIET_MACHINE)
    result = project.run("--llmperf-confirm=1", *how, step_ms=1.5)
    assert result.ret == 1
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["TPOT ×* 1.50 ms > 1.00 ms baseline, *; runs now: 1.50 ms, 1.50 ms)"])


def test_more_work_in_its_code_is_found(project):
    """The name identifies the model, so a third layer is a regression of it."""
    project.write(ONE)
    project.record(*QUIET_MACHINE)
    project.write(ONE.replace("build()", "build(num_hidden_layers=3)"))
    result = project.run()
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*operators / token ×1.*baseline*"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("model", "LlamaForCausalLM has no name to compare it by: add name=, such as name='my-model'"),
        ("model.train(), name='mine'", "model 'mine' is in training mode: expected evaluation mode: call model.eval()"),
        ("model.model, name='mine'", "model 'mine' is a LlamaModel, which cannot generate: expected a causal*"),
        ("'mine'", "found str; expected the value of the llm fixture, a transformers model or a torch module"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(project, call, message):
    project.write(f"{BUILT}\ndef test_mine(model, llmperf):\n    llmperf.generate({call})\n")
    result = project.run()
    assert result.ret == 1
    result.stdout.fnmatch_lines([f"error: test_perf.py::test_mine: UsageError: {message}"])
    result.stdout.no_fnmatch_line("*own_model.py*")


def test_nothing_keeps_it_in_memory(project):
    """After its test, and in the next one's figures; a model that was loaded before does not count either."""
    project.write(
        BUILT
        + """
import gc, weakref

seen = []

@pytest.mark.parametrize("llm", ["fp32"], indirect=True)
def test_loaded(llm, llmperf):
    llmperf.generate(llm)

@pytest.mark.parametrize("execution", ["generate", "loop", "compile"])
def test_mine(model, llmperf, execution):
    from pytest_llmperf import Compile

    gc.collect()
    assert [known() for known in seen] == [None] * len(seen)
    seen.append(weakref.ref(model))
    llmperf.generate(model, name="mine", execution=Compile(backend="eager") if execution == "compile" else execution)
"""
    )
    _, values = measured(project)
    with_others = {name: found["decode_peak_allocated_bytes"].value for name, found in values.items()}
    project.baseline().unlink()
    _, values = measured(project, "-k", "mine and loop")
    assert values["test_mine[loop]"]["decode_peak_allocated_bytes"].value == with_others["test_mine[loop]"]


def test_it_is_served(project):
    project.write(
        BUILT
        + """
def test_mine(model, llmperf):
    llmperf.serve(model, name="mine", scheduler="naive", requests=2, repeats=1)
"""
    )
    (workload,), values = measured(project)
    assert (workload.model, workload.revision, workload.execution) == ("mine", None, "naive")
    assert values["test_mine"]["output_tokens_per_s"].value > 0


def test_a_torch_module_cannot_be_served(project):
    project.write(f"{MODULE}\ndef test_mine(model, llmperf):\n    llmperf.serve(model, name='gru')\n")
    result = project.run()
    result.stdout.fnmatch_lines(["error: *UsageError: llmperf.serve needs a transformers model; model 'gru' is a *"])


def changed(change: str) -> str:
    return CHANGED.replace("CHANGE", change)


def test_a_loaded_model_that_the_test_changes_is_another_workload(project):
    """Its weights are those that were measured, and it is not compared with the model of that name."""
    project.write(changed("pass"))
    (before,), values = measured(project)
    weights = values["test_decode[fp32]"]["weights_bytes"].value
    project.write(changed(ADAPT))
    result = project.run()
    result.stdout.fnmatch_lines(["*not comparable*changed: None -> *"])
    project.baseline().unlink()
    (after,), values = measured(project)
    assert len(after.settings["changed"]) == 12
    assert before.differences(after) == [f"changed: {after.settings['changed']} -> None"]
    assert values["test_decode[fp32]"]["weights_bytes"].value - weights == 4 * 64 * (64 + 128)


def test_a_change_that_stays_the_same_is_compared(project):
    """Each run changes the model in the same way."""
    project.write(changed(ADAPT))
    project.record(*QUIET_MACHINE)
    result = project.run(step_ms=1.5)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["TPOT ×* 1.50 ms > 1.00 ms baseline*"])


def test_a_change_within_a_test_is_seen_between_two_measurements(project):
    project.write(changed(f"before = llmperf.generate(llm)\n    {ADAPT}"))
    workloads, _ = measured(project)
    assert sorted("changed" in one.settings for one in workloads) == [False, True]
