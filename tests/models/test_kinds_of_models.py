"""Kinds of models that users have, measured from outside: by a project's test and options."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from zoo import ZOO, edit_json

pytest.importorskip("torch")
pytest.importorskip("transformers")

TEST = """
import pytest


@pytest.mark.parametrize("llm", ["bf16"], indirect=True)
def test_decode(llm, llmperf):
    llmperf.generate(llm, batch_size=2)
"""
MARKED = "\n\nopen({path!r}, 'w').close()\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    return tmp_path_factory.mktemp("zoo")


def checkpoint(name: str, folder: Path) -> Path:
    """An entry of the zoo, built once; tests that change it copy it."""
    return folder / name if (folder / name).exists() else ZOO[name].build(folder / name)


def run(project: Any, model: Path | str, *arguments: str) -> Any:
    project.write(TEST)
    return project.run(f"--llmperf-model={model}", "--llmperf-json=out", *arguments)


def measured(project: Any, model: Path | str, *arguments: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The workload of a run that passes, and its figures by metric."""
    run(project, model, *arguments).assert_outcomes(passed=1)
    (file,) = (project.path / "out").glob("**/*.json")
    (result,) = json.loads(file.read_text())["results"]
    return result["workload"], {cell["metric"]: cell["value"] for cell in result["cells"]}


def refusal(project: Any, model: Path | str, *arguments: str) -> str:
    """The line with which a run ends that measures nothing."""
    result = run(project, model, *arguments)
    assert result.ret != 0
    text = result.stdout.str() + result.stderr.str()
    assert "Traceback" not in text
    return text


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_an_encoder_decoder_model_is_measured_as_a_whole(name: str, project: Any, folder: Path) -> None:
    workload, figures = measured(project, checkpoint(name, folder))
    assert (workload["model"], workload["output_tokens"]) == (name, 4)
    assert figures["weights_bytes"] == ZOO[name].weights
    assert figures["bandwidth_share"] is None  # decode does not read the encoder


def test_a_vision_language_model_is_measured_by_text_alone(project: Any, folder: Path) -> None:
    """Its weights include the vision tower."""
    model = checkpoint("llava", folder)
    workload, figures = measured(project, model)
    stored = (model / "model.safetensors").stat().st_size
    assert workload["model"] == "llava"
    assert figures["bandwidth_share"] is None
    assert 0 <= stored - figures["weights_bytes"] < 0.2 * stored  # a header, but for buffers


@pytest.mark.parametrize("name", ["bert", "distilbert", "blip-2"])
def test_what_cannot_generate_from_text_is_refused(name: str, project: Any, folder: Path) -> None:
    assert ZOO[name].refused in refusal(project, checkpoint(name, folder))


def test_a_part_of_a_checkpoint_says_so(project: Any, folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    part = shutil.copytree(checkpoint("llama", folder), tmp_path / "part")
    weights = load_file(part / "model.safetensors")
    weights["vision_tower.layers.0.weight"] = weights["lm_head.weight"].clone()
    save_file(weights, part / "model.safetensors", metadata={"format": "pt"})
    assert measured(project, part)[0]["model"] == "part (without vision_tower)"


def test_an_adapter_needs_peft(project: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_llmperf.models.adapter.find_spec", lambda _name: None)
    result = run(project, checkpoint("adapter", folder))
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    line = "*adapter'*needs peft, which is not installed: pip install 'pytest-llmperf[[]adapters]'"
    result.stderr.fnmatch_lines([line])


def test_an_adapter_is_attached_or_merged(project: Any, folder: Path) -> None:
    pytest.importorskip("peft")
    model = checkpoint("adapter", folder)
    attached, its_figures = measured(project, model)
    shutil.rmtree(project.path / "out")
    merged, figures = measured(project, model, "--llmperf-adapter=merged")
    assert (attached["settings"]["adapter"], merged["settings"]["adapter"]) == ("attached", "merged")
    assert merged["settings"]["base"] == "base"
    assert str(folder) not in json.dumps(merged)
    assert figures["weights_bytes"] == ZOO["llama"].weights
    assert its_figures["weights_bytes"] - figures["weights_bytes"] == 3584  # 2 layers of rank 4 at q_proj and v_proj
    assert its_figures["operators_per_token"] > figures["operators_per_token"]


def test_an_adapter_on_the_hub(project: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its revision is its own commit, not that of its base."""
    pytest.importorskip("peft")
    snapshot = shutil.copytree(
        checkpoint("adapter", folder), tmp_path / "models--org--lora" / "snapshots" / "8b1c0ffee"
    )
    monkeypatch.setattr("pytest_llmperf.models.adapter._hub_adapter", lambda _name, _revision: snapshot)
    workload, _ = measured(project, "org/lora")
    assert (workload["model"], workload["revision"]) == ("org/lora", "8b1c0ffee")
    assert workload["settings"]["base_revision"].startswith("sha256:")


def test_an_adapter_of_a_quantized_base(project: Any, folder: Path) -> None:
    """It is attached; merging would round the weights once more."""
    pytest.importorskip("peft")
    pytest.importorskip("bitsandbytes")
    project.write(TEST.replace("bf16", "nf4"))
    arguments = (f"--llmperf-model={checkpoint('adapter', folder)}",)
    project.run(*arguments).assert_outcomes(passed=1)
    merged = project.run(*arguments, "--llmperf-adapter=merged")
    merged.stdout.fnmatch_lines(["*adapter 'adapter' cannot be merged into 'nf4' weights*use adapter='attached'*"])


def test_an_adapter_without_its_base(project: Any, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    alone = shutil.copytree(checkpoint("adapter", folder), tmp_path / "alone")
    edit_json(alone / "adapter_config.json", base_model_name_or_path="/no/base")
    assert "model '/no/base' does not exist" in refusal(project, alone)


def test_an_option_for_adapters_and_a_whole_model(project: Any) -> None:
    line = "model 'synthetic:tiny' has no adapter_config.json: leave out adapter='merged'"
    assert line in refusal(project, "synthetic:tiny", "--llmperf-adapter=merged")


def test_code_that_comes_with_a_model_needs_consent(project: Any, folder: Path, tmp_path: Path) -> None:
    """Without it, nothing of it is executed; the refusal names the option."""
    model, trace = shutil.copytree(checkpoint("remote-code", folder), tmp_path / "remote"), tmp_path / "executed"
    code = model / "own.py"
    code.write_text(code.read_text() + MARKED.format(path=str(trace)))
    assert "pass --llmperf-trust-remote-code or ModelSpec" in refusal(project, model)
    assert not trace.exists()
    measured(project, model, "--llmperf-trust-remote-code")
    assert trace.exists()


def test_consent_is_no_ini_setting(project: Any, folder: Path) -> None:
    """It is given by whoever runs the code, on the command line."""
    project.pytester.makeini("[pytest]\nllmperf_trust_remote_code = true\n")
    assert "--llmperf-trust-remote-code" in refusal(project, checkpoint("remote-code", folder))


def test_a_broken_tokenizer_and_random_prompts(project: Any, folder: Path) -> None:
    model = checkpoint("broken-tokenizer", folder)
    measured(project, model)
    line = refusal(project, model, "--llmperf-prompt=text:hello")
    assert "no tokenizer for a text prompt (KeyError: 'added_tokens'): use a random prompt" in line


def test_a_hub_snapshot_shows_the_models_name(project: Any, folder: Path, tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "models--org--name" / "snapshots" / commit
    shutil.copytree(checkpoint("llama", folder), snapshot)
    workload, _ = measured(project, snapshot)
    assert (workload["model"], workload["revision"]) == ("org/name", commit)


def test_the_last_token_needs_no_position(project: Any, folder: Path) -> None:
    """64 + 65 tokens fit 128 positions."""
    model = checkpoint("gpt2", folder)
    measured(project, model, "--llmperf-input-tokens=64", "--llmperf-output-tokens=65")
    line = refusal(project, model, "--llmperf-input-tokens=64", "--llmperf-output-tokens=66")
    assert "64 input and 66 output tokens exceed the model's limit of 128 positions: use fewer" in line


def test_a_limit_of_another_name(project: Any, folder: Path) -> None:
    line = refusal(project, checkpoint("short-mpt", folder), "--llmperf-input-tokens=12", "--llmperf-output-tokens=6")
    assert "12 input and 6 output tokens exceed the model's limit of 16 positions" in line


def test_a_folder_in_the_ini_file_is_beside_that_file(project: Any, folder: Path) -> None:
    """From whichever folder pytest is started."""
    shutil.copytree(checkpoint("llama", folder), project.path / "weights")
    project.pytester.makeini("[pytest]\nllmperf_model = ./weights\n")
    project.write(TEST)
    (project.path / "sub").mkdir()
    project.monkeypatch.chdir(project.path / "sub")
    arguments = ("--llmperf", "--device=cpu", "--llmperf-requests=1", "--llmperf-warmup=0", "--llmperf-measure-only")
    lengths = ("--llmperf-input-tokens=4", "--llmperf-output-tokens=4")
    project.pytester.runpytest_inprocess(*arguments, *lengths, "..").assert_outcomes(passed=1)


def test_a_side_of_ab_finds_the_users_folder(project: Any, folder: Path, tmp_path: Path) -> None:
    """Its checkout lacks a folder that git ignores."""
    users = tmp_path / "users"
    shutil.copytree(checkpoint("llama", folder), users / "weights")
    project.monkeypatch.setenv("LLMPERF_USERS_FOLDER", str(users))
    assert measured(project, "./weights")[0]["model"] == "weights"
