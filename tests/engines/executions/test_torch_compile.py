"""Decode with ``torch.compile``: counters, clean-up and refusals. Inductor compiles C++ in one test only."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from perf_project import FAKE_CLOCK
from torch import _dynamo as dynamo
from torch._inductor.cudagraph_utils import log_cudagraph_skip_and_bump_counter
from transformers import LlamaConfig

from pytest_llmperf import Compile, ModelSpec
from pytest_llmperf.engines.conditions import measuring_conditions
from pytest_llmperf.engines.executions import torch_compile
from pytest_llmperf.engines.executions.dynamo import Compilations, obstacle
from pytest_llmperf.engines.executions.execution import unnoticed
from pytest_llmperf.engines.executions.read_back import why_read_back
from pytest_llmperf.engines.executions.request import RequestTimes
from pytest_llmperf.errors import MeasurementError, UsageError
from pytest_llmperf.hardware.clock import HostClock
from pytest_llmperf.hardware.garbage_collector import set_libraries_aside
from pytest_llmperf.measure.generation import Plan, measure_generation
from pytest_llmperf.measure.prompt import random_prompt
from pytest_llmperf.models.load import load

TRACED = {"backend": "eager"}
"""Dynamo alone, without inductor's compiler, which takes many times as long."""


READS_BACK = why_read_back(LlamaConfig())
needs_whole_steps = pytest.mark.skipif(bool(READS_BACK), reason=f"a step is several graphs: {READS_BACK}")


@pytest.fixture(scope="module", autouse=True)
def _imported_compiler():
    """Import inductor here: inner runs forget imports, and it can be loaded only once."""
    assert obstacle("cpu", "inductor") == ""
    set_libraries_aside.__wrapped__()  # dynamo makes many objects, and each collection would scan the libraries'


@pytest.fixture(scope="module")
def tiny(model_cache):
    return load(ModelSpec("synthetic:tiny", "fp32"), "cpu").model


def measured(model, execution):
    plan = Plan(batch_size=2, input_tokens=5, output_tokens=4, execution=execution, requests=1, warmup_cap=0)
    found = measure_generation(model, plan, device="cpu", clock=HostClock())
    return found, {figure.metric: figure.value for figure in found.figures}


@needs_whole_steps
@pytest.mark.parametrize("quantization", ["fp32", "bf16", "nf4", "int8"])
def test_a_step_is_one_graph(model_cache, quantization):
    """There are no graph breaks or recompilations, and the tokens are the loop's."""
    model = load(ModelSpec("synthetic:tiny", quantization), "cpu").model
    found, figures = measured(model, Compile(**TRACED))
    plain, _ = measured(model, "loop")
    assert found.counts.token_digest == plain.counts.token_digest
    assert found.counts.cache == plain.counts.cache
    assert not found.counts.figures
    counted = ("graph_breaks", "unique_graphs", "recompilations", "tokens_unlike_loop")
    assert [figures[name] for name in counted] == [0, 1, 0, 0]
    assert figures["compile_ms"] > 0
    assert figures["cold_ttft_ms"] > 0


@needs_whole_steps
def test_breaks_are_counted_as_dynamo_counts_them(model_cache):
    """LLM.int8() with a threshold reads the number of outliers; a dynamo setting allows tracing it."""
    model = load(ModelSpec("synthetic:tiny", "int8-decomp"), "cpu").model
    _, figures = measured(model, Compile(**TRACED))
    assert figures["graph_breaks"] == sum(dynamo.utils.counters["graph_break"].values()) > 10
    assert figures["unique_graphs"] > 10
    assert figures["recompilations"] > 10
    _, whole = measured(model, Compile(**TRACED, dynamo={"capture_dynamic_output_shape_ops": True}))
    assert (whole["graph_breaks"], whole["unique_graphs"]) == (0, 1)
    with pytest.raises(MeasurementError, match=r"torch.compile: .*fail_on_recompile_limit_hit"):
        measured(model, Compile(**TRACED, dynamo={"recompile_limit": 1}))


def test_nothing_is_left_behind(tiny):
    """Settings and compiled code are reset after errors too: an eager request dispatches as before."""
    before, _ = measured(tiny, "loop")
    with pytest.raises(ZeroDivisionError):
        fail_in(tiny, Compile(**TRACED, matmul_precision="high", dynamo={"recompile_limit": 3}))
    assert torch.get_float32_matmul_precision() == "highest"
    assert dynamo.config.recompile_limit != 3
    assert not dynamo.convert_frame.output_codes.seen
    assert measured(tiny, "loop")[0].counts == before.counts


def test_a_precision_that_is_not_kept_is_an_error(tiny, monkeypatch):
    """Compiling resets it in torch 2.7 and 2.8."""
    settle = torch_compile._settle
    reset = partial(torch.set_float32_matmul_precision, "high")
    monkeypatch.setattr(torch_compile, "_settle", lambda *args: (settle(*args), reset())[0])
    with pytest.raises(MeasurementError, match=r"^torch \S+ changed matmul_precision 'medium' to 'high' during"):
        measured(tiny, Compile(**TRACED, matmul_precision="medium"))
    assert torch.get_float32_matmul_precision() == "highest"


def fail_in(model, execution):
    with measuring_conditions(), execution.open(model, prompt(model), 4, HostClock()):
        assert torch.get_float32_matmul_precision() == "high"
        assert dynamo.config.recompile_limit == 3
        assert dynamo.convert_frame.output_codes.seen
        raise ZeroDivisionError


def prompt(model):
    return random_prompt(model.config, batch_size=2, input_tokens=5, seed=0)


def test_compiling_while_timed_is_an_error(tiny):
    """Changed global state makes dynamo recompile, so the times are not steady."""
    with measuring_conditions(), Compile(**TRACED).open(tiny, prompt(tiny), 4, HostClock()) as opened:
        opened.request(3, unnoticed)
        assert opened.figures()
        torch.set_default_dtype(torch.float64)
        try:
            opened.request(4, unnoticed)
        finally:
            torch.set_default_dtype(torch.float32)
        with pytest.raises(MeasurementError, match=r"compiled \d frames during timed requests: .*GLOBAL_STATE"):
            opened.figures()


@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune"])
def test_cuda_graphs_that_were_skipped_are_an_error(mode):
    """The mode requests them, and inductor continues silently. Other devices have none."""
    compilations = Compilations()
    cuda, cpu = torch.device("cuda:0"), torch.device("cpu")
    dynamo.utils.counters.clear()
    Compile(mode=mode)._check_graphs(cuda, compilations)
    log_cudagraph_skip_and_bump_counter("skipping cudagraphs due to mutated inputs")
    Compile(mode=mode)._check_graphs(cpu, compilations)
    Compile(mode="default")._check_graphs(cuda, compilations)
    message = rf"mode '{mode}': inductor skipped CUDA graphs 1 times; expected 0: set TORCH_LOGS=cudagraphs"
    with pytest.raises(MeasurementError, match=message):
        Compile(mode=mode)._check_graphs(cuda, compilations)


def test_skipped_graphs_are_looked_for_before_and_after_timing(tiny, monkeypatch):
    """Inductor may discard a graph later, when an input's address changes."""
    checked = []
    monkeypatch.setattr(Compile, "_check_graphs", lambda _self, device, _compilations: checked.append(device.type))
    with measuring_conditions(), Compile(**TRACED).open(tiny, prompt(tiny), 4, HostClock()) as opened:
        assert checked == ["cpu"]
        opened.figures()
        assert checked == ["cpu", "cpu"]


def test_compiling_nothing_is_an_error(tiny):
    """Decode ran eagerly, which was not requested."""
    with pytest.raises(MeasurementError, match=r"torch.compile compiled nothing, so decode ran eagerly"):
        measured(tiny, Compile(**TRACED, dynamo={"disable": True}))


def test_what_dynamo_cannot_trace_is_one_line(tiny):
    """A graph break with ``fullgraph`` is an error with its cause."""
    handle = tiny.register_forward_hook(lambda *_: dynamo.graph_break("mine"))
    try:
        with pytest.raises(MeasurementError, match=r"^torch.compile: .*graph_break.*$"):
            measured(tiny, Compile(**TRACED, fullgraph=True))
    finally:
        handle.remove()


class Growing:
    """Compiles something in every request."""

    reasons = ()

    def count(self, *_names):
        return 1


def test_compiling_without_end_is_an_error(monkeypatch):
    """Times would include compilation."""
    counts = Growing()

    def time_request(_run, _clock):
        counts.reasons = (*counts.reasons, f"reason {len(counts.reasons)}")
        return RequestTimes(1.0, [1.0], 2.0), None

    monkeypatch.setattr(torch_compile, "time_request", time_request)
    with pytest.raises(MeasurementError, match=r"torch.compile was still compiling in request 6: reason 4"):
        torch_compile._settle(None, HostClock(), counts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "fast"}, "compile: mode 'fast' is unknown: expected one of default, reduce-overhead, max-autotune"),
        ({"matmul_precision": "low"}, "matmul_precision 'low' is unknown: expected one of highest, high, medium"),
        ({"backend": "gcc"}, "compile: backend 'gcc' is unknown: expected one of .*eager.*inductor"),
        ({"dynamo": {"warp": 1}}, "dynamo setting 'warp' is unknown"),
        ({"dynamo": {"recompile_limit": True}}, "dynamo setting recompile_limit=True: expected type int"),
    ],
)
def test_wrong_settings_are_named(arguments, message):
    with pytest.raises(UsageError, match=message):
        Compile(**arguments)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--llmperf-execution=loop,warp", "*unknown execution 'warp': expected one of generate, loop, compile, graph*"),
        ("--llmperf-compile-mode=fast", "*compile: mode 'fast' is unknown*"),
        ("--llmperf-dynamo=warp=1", "*dynamo setting 'warp' is unknown: expected one of torch._dynamo.config*"),
        ("--llmperf-dynamo=recompile_limit", "*--llmperf-dynamo 'recompile_limit': expected NAME=VALUE*"),
        ("--llmperf-dynamo=recompile_limit=many", "*recompile_limit='many': expected type int*"),
    ],
)
def test_wrong_options_end_collection(project, option, message):
    """The exit code is 4."""
    project.write()
    result = project.run(option)
    assert result.ret == 4
    result.stderr.fnmatch_lines([message])


@needs_whole_steps
def test_the_suite_measures_eager_and_compiled_and_their_ratio(project):
    """With real inductor; mode and dynamo settings come from the command line."""
    result = project.run(
        "--pyargs", "pytest_llmperf.suite.speedup", "--llmperf-quantization=fp32", "--llmperf-batch-sizes=1",
        "--llmperf-execution=loop,compile", "--llmperf-compile-mode=max-autotune-no-cudagraphs",
        "--llmperf-dynamo=recompile_limit=7", "--llmperf-json=out",
    )  # fmt: skip
    result.assert_outcomes(passed=1)
    files = [json.loads(path.read_text()) for path in (project.path / "out").glob("*.json")]
    results = [result for file in files for result in file["results"]]
    found = {(one["workload"]["execution"], one["cells"][0]["metric"]): one for one in results}
    assert set(found) == {("loop", "tpot_ms"), ("compile", "tpot_ms"), ("compile", "speedup_ratio")}
    fast = found["compile", "tpot_ms"]
    assert fast["workload"]["settings"] == {
        "cache": "static", "mode": "max-autotune-no-cudagraphs", "dynamic": None, "fullgraph": False,
        "backend": "inductor", "matmul_precision": "highest", "dynamo.recompile_limit": 7,
    }  # fmt: skip
    cells = {cell["metric"]: cell["value"] for cell in fast["cells"]}
    assert (cells["unique_graphs"], cells["recompilations"], cells["tokens_unlike_loop"]) == (1, 0, 0)
    assert "operators_per_token" not in cells


WITH_DYNAMO = """
import pytest
from pytest_llmperf import Compile

@pytest.mark.parametrize("llm", ["fp32"], indirect=True)
def test_compiled(llm, llmperf):
    llmperf.generate(llm, execution=Compile(backend="eager"))
"""

GOES_WRONG = """
import pytest_llmperf.engines.executions.torch_compile as compiled

right = compiled.next_token
compiled.next_token = lambda *args, **options: right(*args, **options) ^ 1
"""


def test_tokens_unlike_the_loops_are_told(project):
    """They are counted and do not fail the test."""
    project.write(WITH_DYNAMO, conftest=FAKE_CLOCK + GOES_WRONG)
    result = project.run()
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["compile: 3 of 4 tokens differ from loop's: test_perf.py::test_compiled[[]fp32[]]"])


@needs_whole_steps
def test_a_new_graph_break_turns_the_test_red(project):
    """The number of breaks is judged exactly and gates."""
    project.write(WITH_DYNAMO)
    project.record(1.0, 1.0)
    breaks = """
from torch import _dynamo
import pytest_llmperf.engines.executions.torch_compile as compiled

right = compiled.next_token

def broken(*args, **options):
    _dynamo.graph_break("mine")
    return right(*args, **options)

compiled.next_token = broken
"""
    project.write(WITH_DYNAMO, conftest=FAKE_CLOCK + breaks)
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["graph breaks * > 0 baseline, *"])


def test_without_a_compiler_the_test_is_skipped(project, monkeypatch):
    """The skip has a reason, and nothing else is measured instead."""
    obstacle.cache_clear()
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, "no-compiler"))
    monkeypatch.setattr(torch._inductor.config, "force_disable_caches", True)
    project.write(WITH_DYNAMO.replace('Compile(backend="eager")', '"compile"'))
    result = project.run("-rs")
    obstacle.cache_clear()
    assert result.ret == 0
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(
        [
            "*Nothing was verified.",
            "SKIPPED*execution 'compile' cannot run on cpu here: *No working C++ compiler found*",
        ]
    )
