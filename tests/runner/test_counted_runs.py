"""``--llmperf-counted``: one untimed request of each workload, and figures that depend on no machine."""

from __future__ import annotations

import json
import sys

import pytest

from pytest_llmperf.metrics import METRICS, is_counted
from pytest_llmperf.models.quantized_layers import repacks_4bit
from pytest_llmperf.verdict.verdict_file import read_verdicts

COUNTED = {
    "operators_per_token", "flops_per_token", "moved_bytes_per_token", "prefill_operators", "prefill_flops",
    "prefill_moved_bytes", "weights_bytes", "kv_cache_bytes",
}  # fmt: skip

TEST = """
import pytest


@pytest.mark.parametrize("llm", ["fp32", "nf4"], indirect=True)
def test_decode(llm, llmperf):
    forwards = []
    hook = llm.model.register_forward_pre_hook(lambda *_: forwards.append(1))
    llmperf.generate(llm, batch_size=2)
    hook.remove()
    print(f"forwards: {len(forwards)}")
"""


def stored(project):
    return json.loads(project.baseline().read_text())


def test_only_counts_are_recorded_and_nothing_is_timed(project):
    """The file's name has no processor in it; two forwards of first use precede the four that are counted."""
    project.write(TEST)
    result = project.run("--llmperf-counted", "--llmperf-requests=9", "-s")
    result.stdout.fnmatch_lines(
        ["*16 new. Nothing was verified.", "to verify: llmperf record --counted --llmperf-model=*"]
    )
    result = project.run("--llmperf-counted", "--llmperf-update", "-s")
    assert result.ret == 0
    assert project.baseline().name == "counted-cpu.json"
    metrics = {cell["metric"] for cell in stored(project)["cells"]}
    assert all(map(is_counted, metrics))
    assert {name for name in metrics if METRICS[name].gates} == COUNTED
    assert {row["clock"] for row in stored(project)["observations"]} == {"none"}
    assert result.stdout.str().count("forwards: 6") == 2
    result.stdout.fnmatch_lines([
        "test * operators / token *",
        "test_decode[[]fp32[]] * 165 * new",
        f"test_decode[[]nf4[]] * {193 if repacks_4bit() else 207} * new",
        "times were not measured: --llmperf-counted only counts",
    ])  # fmt: skip


def test_a_run_with_times_counts_the_same(project):
    """One decides the other's counted cells, in both directions; what first use does is in neither."""
    project.write(TEST)
    project.run("--llmperf-counted", "--llmperf-update")
    for arguments in ((), ("--llmperf-counted", "--llmperf-strict")):
        result = project.run("--llmperf-verdicts=verdicts.json", *arguments)
        assert result.ret == 0
        cells = [cell for test in read_verdicts(project.path / "verdicts.json").tests for cell in test.cells]
        assert {cell.outcome.value for cell in cells if cell.metric in COUNTED} == {"unchanged"}
    result.stdout.fnmatch_lines(["llmperf: 2 tests, 16 of 16 gating cells decided: 16 unchanged"])


def test_the_ini_file_can_ask_for_it(project):
    """As for every setting."""
    project.write()
    project.pytester.makeini("[pytest]\nllmperf_counted = true")
    result = project.run()
    result.stdout.fnmatch_lines(["*llmperf: counted-cpu*", "times were not measured: *"])


UNCOUNTED = {
    "compiled": ('llmperf.generate(llm, execution="compile")', "execution 'compile' is not counted: it does not"),
    "lookup": ('llmperf.generate(llm, execution="lookup")', "execution 'lookup' is not counted: its work depends"),
    "served": ("llmperf.serve(llm)", "how an engine serves requests is not counted"),
    "call": ("cuda_timer(abs, 1)", "the time of a call is not counted"),
    "ratio": ("llmperf.speedup(llmperf.generate(llm), over=llmperf.generate(llm, batch_size=2))",
              "a speed-up is not counted"),
}  # fmt: skip


@pytest.mark.parametrize(("body", "reason"), UNCOUNTED.values(), ids=UNCOUNTED)
def test_what_cannot_be_counted_is_skipped_with_the_reason(project, body, reason):
    """Nothing of such a test is stored, and it is no pass."""
    fixtures = "llm, llmperf, cuda_timer" if "cuda_timer" in body else "llm, llmperf"
    head = 'import pytest\n\n@pytest.mark.parametrize("llm", ["fp32"], indirect=True)\n'
    project.write(f"{head}def test_it({fixtures}):\n    {body}")
    result = project.run("--llmperf-counted", "--llmperf-update", "-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*Nothing was verified.*", f"SKIPPED*--llmperf-counted: {reason}*"])
    assert not (project.path / "baselines").exists()


def test_a_test_of_an_engine_is_skipped_before_its_model_is_loaded(project):
    """The fixture ``engine`` is for serving."""
    project.write("def test_it(engine, llmperf):\n    llmperf.serve(engine)")
    result = project.run("--llmperf-counted", "--llmperf-quantization=fp32", "-rs")
    result.stdout.fnmatch_lines(["SKIPPED*--llmperf-counted: how an engine serves requests is not counted*"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--llmperf", "--llmperf-counted", "--llmperf-measure-only", "--llmperf-profile=out"], "*has no times*"),
        (["--llmperf-counted"], "*--llmperf-counted needs --llmperf*"),
    ],
)
def test_what_contradicts_it_is_one_line(project, arguments, message):
    """The exit code is 4."""
    project.write()
    result = project.pytester.runpytest_inprocess(*arguments)
    assert result.ret == 4
    result.stderr.fnmatch_lines([f"ERROR: {message}"])


def test_record_counts_once(project):
    """Two runs would give the same counts, so that one is the default."""
    project.write()
    result = project.pytester.run(
        sys.executable, "-m", "pytest_llmperf", "record", "--counted", "--device=cpu", "--llmperf-model=synthetic:tiny",
        "--llmperf-output-tokens=4", "-q", "-p", "no:benchmark",
    )  # fmt: skip
    assert result.ret == 0, result.outlines
    result.stdout.fnmatch_lines(["llmperf record: run 1 of 1", "times were not measured: *"])
    assert (project.baseline().name, len(stored(project)["runs"])) == ("counted-cpu.json", 1)
