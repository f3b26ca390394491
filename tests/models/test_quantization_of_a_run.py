"""Quantizations from outside: what a user's run measures, says and refuses."""

from __future__ import annotations

import json
import shutil

import pytest
from packaging.version import Version
from zoo import ZOO

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
since_5 = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5"), reason="transformers 4 quantizes other layers, or says why not"
)

DECODE = """
def test_decode(llm, llmperf):
    llmperf.generate(llm)
"""


def collected(project, *arguments: str) -> list[str]:
    lines = project.run("--collect-only", "-q", *arguments).outlines
    return [line.partition("::")[2] for line in lines if "::" in line]


def workloads(result_folder) -> list[dict[str, object]]:
    files = [json.loads(file.read_text()) for file in sorted(result_folder.glob("*.json"))]
    return [one["workload"] for found in files for one in found["results"]]


@since_5
@pytest.mark.parametrize("name", ["falcon", "declared-fp8"])
def test_a_quantization_that_is_not_there_fails_the_test_in_one_line(project, name: str) -> None:
    ZOO[name].build(project.path / "mine")
    project.write(DECODE)
    given = [] if "declared" in name else ["--llmperf-quantization=nf4"]
    result = project.run("--llmperf-model=./mine", *given)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*model *mine*bytes of linear weights*"])
    result.stdout.no_fnmatch_line("*Traceback*")


def test_a_quantized_checkpoint_is_measured_as_stored(project) -> None:
    """Nothing is named: the checkpoint's own quantization is the only one, and its label is in the workload."""
    ZOO["stored-nf4-dq"].build(project.path / "mine")
    project.write(DECODE)
    assert collected(project, "--llmperf-model=./mine") == ["test_decode[stored]"]
    result = project.run("--llmperf-model=./mine", "--llmperf-json=out")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["mine nf4-dq sdpa"])
    (workload,) = workloads(project.path / "out")
    assert workload["quantization"] == "nf4-dq"
    assert workload["settings"] == {}


def test_a_named_quantization_is_not_replaced(project) -> None:
    """The refusal names the option that measures the checkpoint."""
    ZOO["stored-fp4"].build(project.path / "mine")
    project.write(DECODE)
    result = project.run("--llmperf-model=./mine", "--llmperf-quantization=nf4")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*request 'stored' (--llmperf-quantization=stored)*"])


def test_a_dense_checkpoint_is_measured_in_the_default_quantizations(project) -> None:
    project.write(DECODE)
    assert collected(project) == ["test_decode[nf4]", "test_decode[int8]", "test_decode[int8-decomp]"]


def test_a_quantized_checkpoint_of_the_hub_is_known_from_its_cache(project) -> None:
    """Its config is read there; another revision is not in the cache, so nothing is known of it."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = project.path / "hub" / "models--somebody--small"
    ZOO["stored-nf4"].build(project.path / "built")
    shutil.copytree(project.path / "built", repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    project.monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(project.path / "hub"))
    project.write(DECODE)
    assert collected(project, "--llmperf-model=somebody/small") == ["test_decode[stored]"]
    assert len(collected(project, "--llmperf-model=somebody/small", "--llmperf-revision=v2")) == 3


@since_5
def test_the_share_of_a_mixture_is_said_and_recorded(project) -> None:
    """Beside it, the same test in nf4, which has all of the weights and says nothing."""
    ZOO["mixtral"].build(project.path / "mine")
    project.write(DECODE)
    result = project.run("--llmperf-model=./mine", "--llmperf-quantization=nf4,int8", "--llmperf-json=out")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["mine nf4 sdpa", "mine int8 (20% of linear weights) sdpa"])
    settings = {one["quantization"]: one["settings"] for one in workloads(project.path / "out")}
    assert settings["int8"]["quantized_share"] == 0.2
    assert settings["nf4"]["experts"] == "nf4"
    assert "quantized_share" not in settings["nf4"]
