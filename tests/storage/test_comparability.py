"""Runs that are not comparable neither fail nor pass."""

from __future__ import annotations

import json

import pytest


@pytest.mark.parametrize(
    ("arguments", "difference"),
    [
        (["--llmperf-output-tokens=5"], "output_tokens: 4 -> 5"),
        (["--llmperf-input-tokens=5"], "input_tokens: 4 -> 5"),
    ],
)
def test_another_length_is_not_comparable(project, arguments, difference):
    """Figures of another length are not compared, however close they are."""
    project.write()
    project.record(1.0)
    result = project.run(*arguments, step_ms=9.0)
    assert result.ret == 0
    result.stdout.fnmatch_lines([f"not comparable: *{difference}*", "*Nothing was verified.*"])


def test_another_revision_of_the_model_is_not_comparable(project, tmp_path):
    """A folder of the same name with other weights is another model."""
    import shutil

    from pytest_llmperf.models import synthetic

    folder = project.path / "model"
    shutil.copytree(synthetic.prepare("synthetic:tiny"), folder)
    project.write()
    assert project.run(f"--llmperf-model={folder}", "--llmperf-update").ret == 0
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    result = project.run(f"--llmperf-model={folder}", step_ms=9.0)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["not comparable: *revision: sha256:* -> sha256:*", "*Nothing was verified.*"])
    assert str(project.path) not in project.baseline().read_text(), "no path of this machine in a baseline"


def test_another_dtype_is_another_test_or_not_comparable(project):
    """A quantization is part of the test's id; the same id with another dtype has another workload."""
    project.write()
    project.record(1.0)
    source = (project.path / "test_perf.py").read_text()
    (project.path / "test_perf.py").write_text(source.replace('["fp32"]', '["bf16"]'))
    project.run(step_ms=9.0).stdout.fnmatch_lines(["missing: 1 test of *fp32*", "*Nothing was verified.*"])
    (project.path / "test_perf.py").write_text(source.replace('["fp32"]', '["bf16"], ids=["fp32"]'))
    result = project.run(step_ms=9.0)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["not comparable: *dtype: float32 -> bfloat16*", "*Nothing was verified.*"])


def test_another_version_underneath_is_not_comparable(project):
    """A run with another torch is reported as not comparable."""
    import torch

    project.write()
    project.record(1.0)
    text = project.baseline().read_text().replace(f'"torch": "{torch.__version__}"', '"torch": "1.0"')
    project.baseline().write_text(text)
    result = project.run(step_ms=9.0)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["not comparable: *environment torch: 1.0 -> *", "*Nothing was verified.*"])


def test_runs_of_both_versions_in_one_file_compare_with_their_own(project):
    """After an upgrade, runs are compared with those of the same version in the same file."""
    import torch

    project.write()
    project.record(1.0, 9.0)
    lines = project.baseline().read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if '"session 1"' in line)
    lines[first] = lines[first].replace(f'"torch": "{torch.__version__}"', '"torch": "1.0"')
    project.baseline().write_text("\n".join(lines))
    result = project.run()
    result.stdout.fnmatch_lines(["test_decode*1.00 ms*1.00 ms*"])
    result.stdout.no_fnmatch_line("*9.00 ms*")
