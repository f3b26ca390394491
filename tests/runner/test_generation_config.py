"""A checkpoint's generation config, and assisted decoding, from outside."""

from __future__ import annotations

import json
import shutil

import pytest

from pytest_llmperf.models import synthetic

GENERATE = """
import pytest


@pytest.mark.parametrize("llm", ["fp32"], indirect=True)
def test_decode(llm, llmperf):
    llmperf.generate(llm, execution=EXECUTION)
"""


@pytest.fixture
def checkpoint(project):
    """A project with a local model. Call it to change its generation config."""
    folder = project.path / "mine"
    shutil.copytree(synthetic.prepare("synthetic:tiny"), folder)
    project.write(GENERATE.replace("EXECUTION", '"generate"'))

    def configure(**settings):
        file = folder / "generation_config.json"
        before = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps({**before, **settings}))

    return configure


def run(project, *arguments):
    return project.run("--llmperf-model=./mine", *arguments)


def workload(project):
    (written,) = (project.path / "out").glob("*.json")
    return json.loads(written.read_text())["results"][0]["workload"]


def test_a_changed_generation_config_is_not_compared(project, checkpoint):
    """A repetition penalty costs operators: that is another workload, not a regression."""
    assert run(project, "--llmperf-update").ret == 0
    checkpoint(repetition_penalty=1.2)
    result = run(project, "--llmperf-json=out")
    assert result.ret == 0, result.outlines
    result.stdout.fnmatch_lines(["*not comparable*"])
    assert "regressed" not in result.stdout.str()
    assert workload(project)["settings"] == {"repetition_penalty": 1.2}
    assert workload(project)["sampling"] == "greedy"


def test_samplers_of_the_checkpoint_are_not_used(project, checkpoint):
    """As many checkpoints have them."""
    checkpoint(do_sample=True, temperature=0.6, top_p=0.9)
    assert run(project, "--llmperf-json=out").ret == 0
    assert (workload(project)["settings"], workload(project)["sampling"]) == ({}, "greedy")


def test_beams_are_refused_in_one_line(project, checkpoint):
    """With the remedy."""
    checkpoint(num_beams=2)
    result = run(project)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["error: *generation_config num_beams=2: beam search is not measured: set it to 1"])


def test_prompt_lookup_of_the_checkpoint_is_a_setting(project, checkpoint):
    """At a batch of one."""
    checkpoint(prompt_lookup_num_tokens=3)
    assert run(project, "--llmperf-json=out").ret == 0
    assert workload(project)["settings"] == {"prompt_lookup_num_tokens": 3}


def test_assisted_executions_of_the_suite(project):
    """Batches of one are measured with their figures, which gate; others are skipped with the reason."""
    project.pytester.makeconftest("")
    result = project.run(
        "--pyargs", "pytest_llmperf.suite", "--llmperf-quantization=fp32", "--llmperf-batch-sizes=1,2", "-rs",
        "--llmperf-execution=lookup,assisted", "--llmperf-assistant=synthetic:tiny", "--llmperf-json=out",
        "--llmperf-output-tokens=33",
    )  # fmt: skip
    result.assert_outcomes(passed=2, skipped=2)
    result.stdout.fnmatch_lines(["SKIPPED*execution 'lookup' takes one sequence, found a batch of 2: use batch_size=1"])
    results = [json.loads(file.read_text())["results"][0] for file in sorted((project.path / "out").glob("*.json"))]
    drafted, looked_up = [one["workload"] for one in results]
    assert (looked_up["execution"], looked_up["settings"]) == ("lookup", {"tokens": 10, "ngram": 2})
    assert (drafted["execution"], drafted["settings"]["assistant"]) == ("assisted", "synthetic:tiny")
    for one in results:
        cells = {cell["metric"]: cell["value"] for cell in one["cells"]}
        assert cells["tokens_per_step"] >= 1
        assert cells["tpot_ms"] > 0
        assert cells["tokens_unlike_loop"] == 0


def test_assisted_needs_a_draft_model(project):
    """Before anything is measured."""
    project.write()
    result = project.run("--llmperf-execution=assisted")
    assert result.ret == 4
    result.stderr.fnmatch_lines(["*execution 'assisted' needs a draft model: expected --llmperf-assistant MODEL*"])


def test_fewer_accepted_tokens_fail_the_test(project):
    """By name, with the figures of both runs."""
    project.write(GENERATE.replace("EXECUTION", 'Assisted("synthetic:tiny", confidence=0)').replace(
        "import pytest", "import pytest\nfrom pytest_llmperf import Assisted"))  # fmt: skip
    assert project.run("--llmperf-update", "--llmperf-output-tokens=9").ret == 0
    result = project.run("--llmperf-output-tokens=9", "--llmperf-inject=tokens_per_step:-20%")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*tokens / step*"])
