"""Bad input gives one line: the thing, what was found and what was expected; exit code 4 if known early."""

from __future__ import annotations

import importlib.util
import json

import pytest


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--device=tpu"], "unknown device 'tpu': expected auto, cpu, cuda, cuda:N*"),
        (["--llmperf-device=cuda:7"], "*contradict each other*"),
        (["--llmperf-quantization=nf5"], "*quantization 'nf5' does not exist*did you mean*nf4*"),
        (["--llmperf-model=synthetic:2b"], "*synthetic:2b*expected*synthetic:32m*"),
        (["--llmperf-model=./nowhere"], "*nowhere*"),
        (["--llmperf-gate=tpto"], "*unknown metric 'tpto' (did you mean 'tpot'?)*"),
        (["--llmperf-gate=load"], "*load is informative and never judged*"),
        (["--llmperf-tolerate=much"], "*tolerate='much': expected a share such as 3% or 0.03*"),
        (["--llmperf-tolerate=tpot:9%", "--llmperf-catch=tpot:1%"], "*tpot: catch=0.01 is less than tolerate=0.09*"),
        (["--llmperf-inject=tpot"], "*--llmperf-inject 'tpot': expected METRIC:+N%*"),
        (["--llmperf-inject=token_digest:+5%"], "*token_digest*expected a numeric metric*"),
        (["--llmperf-inject=tpot:+5%", "--llmperf-update"], "*a baseline must not contain injected regressions*"),
        (["--llmperf-inject=tpot:+5%", "--llmperf-measure-only"], "*a run that compares nothing cannot fail*"),
        (
            ["--llmperf-update", "tests"],
            "--llmperf-update tests: expected all or new: write --llmperf-update=all tests",
        ),
        (["--llmperf-adapter=beside"], "*--llmperf-adapter 'beside': expected attached or merged*"),
        (["--llmperf-explain=maybe"], "*--llmperf-explain 'maybe': expected on or off*"),
        (["--llmperf-times-only"], "*--llmperf-times-only: a baseline needs counted work and memory: add *"),
        (["--llmperf-times-only", "--llmperf-measure-only", "--llmperf-update"], "*and leave out --llmperf-update"),
        (["--llmperf-requests-by-test=none.json"], "*none.json: *No such file*: expected a JSON object by test, *"),
        (["--llmperf-times-only", "--llmperf-counted"], "*nothing is left to measure: leave out one"),
        (["--llmperf-force-update"], "*--llmperf-force-update needs --llmperf-update*"),
        (["--llmperf-requests=0"], "*--llmperf-requests '0': expected a whole number of at least 1*"),
        (["--llmperf-output-tokens=many"], "*--llmperf-output-tokens 'many': expected a whole number*"),
        (["--llmperf-timeout=soon"], "*--llmperf-timeout 'soon': expected a number of seconds, or 0 for no limit*"),
        (["--llmperf-batch-sizes="], "*--llmperf-batch-sizes '': expected at least one name*"),
        (["-n2"], "*2 workers for one device *"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_option_is_one_line_and_exit_code_4(project, arguments, line):
    """Nothing is measured, and the line says how to fix the option."""
    project.write("def test_decode(llm, llmperf): llmperf.generate(llm)")
    result = project.run(*arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {line}"])
    assert "Traceback" not in result.stderr.str() + result.stdout.str()


def test_a_folder_that_pytest_takes_for_the_root_is_told(project, tmp_path_factory):
    """Otherwise settings, test names and baselines would be relative to the model's folder."""
    project.write()
    model = tmp_path_factory.mktemp("model")
    wrong = project.pytester.runpytest_inprocess("--llmperf", "--llmperf-model", str(model))
    assert wrong.ret == pytest.ExitCode.USAGE_ERROR
    wrong.stderr.fnmatch_lines([f"ERROR: pytest parsed {model} as a test path, *: use --llmperf-model={model}"])
    right = project.pytester.runpytest_inprocess("--llmperf", f"--llmperf-model={model}")
    right.stderr.fnmatch_lines([f"ERROR: model '{model}' has no config.json: *"])


def test_a_device_that_is_not_here_is_named_with_what_is(project):
    """Only torch knows which devices exist; the run still stops before it measures."""
    import torch

    if torch.cuda.device_count() > 7:
        pytest.skip("this machine has a cuda:7")
    project.write()
    result = project.pytester.runpytest("--llmperf", "--llmperf-device=cuda:7", "--llmperf-model=synthetic:tiny")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*device 'cuda:7' is not available: torch * sees *; choose another with --device"])


@pytest.mark.parametrize(
    ("marker", "line"),
    [
        ("tolerance=0.1", "*test_decode*unexpected keyword 'tolerance'; expected keywords catch, gate, requests*"),
        ("'tpot'", "*test_decode*unexpected positional 'tpot'*"),
        ("gate=['tpto']", "*test_decode*unknown metric 'tpto'*"),
        ("tolerate=-1", "*test_decode*tolerate=-1: expected a share*"),
        ("requests=0", "*test_decode*requests 0: expected a whole number*"),
    ],
)
@pytest.mark.parametrize("active", [True, False], ids=["with --llmperf", "without"])
def test_a_wrong_marker_names_its_test(project, marker, line, active):
    """Every run checks markers at collection."""
    project.write(f"import pytest\n\n@pytest.mark.llmperf({marker})\ndef test_decode(): pass")
    result = project.run() if active else project.pytester.runpytest()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([line])


def test_a_wrong_quantization_in_a_test_names_it(project):
    """It is checked at collection, so the run does not start."""
    project.write("import pytest\n\n@pytest.mark.parametrize('llm', ['nf5'], indirect=True)\ndef test_a(llm): pass")
    result = project.run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: test_perf.py::test_a[[]nf5[]]: quantization 'nf5' does not exist*"])


def test_an_option_that_does_something_needs_the_flag(project):
    """Options that need ``--llmperf`` are errors without it."""
    project.write()
    result = project.pytester.runpytest("--llmperf-update")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--llmperf-update needs --llmperf*"])


@pytest.mark.parametrize(
    ("package", "extra"), [("torch", "models"), ("transformers", "models"), ("bitsandbytes", "models")]
)
def test_a_missing_package_is_one_line_with_the_command_that_installs_it(project, monkeypatch, package, extra):
    """Missing extras are reported before anything is measured."""
    find = importlib.util.find_spec
    for module in ("hardware.device", "models.load", "models.quantization"):
        monkeypatch.setattr(
            f"pytest_llmperf.{module}.find_spec", lambda name, *a: None if name == package else find(name)
        )
    project.write("def test_decode(llm, llmperf): llmperf.generate(llm)")
    result = project.run("--llmperf-quantization=nf4")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        [f"*needs {package}, which is not installed: pip install 'pytest-llmperf[[]{extra}[]]'"]
    )


def test_a_model_that_cannot_be_had_is_an_error_verdict_and_tried_once(project):
    """A hub name fails only when it is loaded; each test reports it in one line, and loading is not tried again."""
    project.write("""
        import pytest

        @pytest.mark.parametrize("llm", ["fp32"], indirect=True)
        @pytest.mark.parametrize("number", [1, 2])
        def test_decode(llm, llmperf, number):
            llmperf.generate(llm)
    """)
    result = project.run("--llmperf-model=nobody/nothing-of-this-name")
    assert result.ret == 1
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(
        ["error: *nobody/nothing-of-this-name*neither a local folder nor reachable*", "*2 error*"]
    )
    result.stdout.no_fnmatch_line("*Traceback*")


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda text: text[: len(text) // 2], "*.json: line *, column *: not valid JSON*"),
        (
            lambda text: text.replace('"count": 2', '"count": -2', 1),
            "*.json: cells.*.count: * greater than or equal to 0, found '-2'*",
        ),
        (
            lambda text: text.replace('"batch_size": 2', '"batch_size": 3'),
            "*.json: workloads.*: the hash*edited by hand*",
        ),
        (
            lambda text: text.replace('"schema_version": 1', '"schema_version": 99'),
            "*expected at most 1, found 99: upgrade*",
        ),
        (lambda text: text.replace('"schema_version": 1', '"version": 1'), "*schema_version: expected 1, found None*"),
        (lambda text: text.replace('"cells": [', '"cells": [],\n"surprise": ['), "*.json: surprise: *"),
        (lambda text: "", "*.json: line 1*not valid JSON*"),
        (lambda text: "[]", "*not a baseline file*"),
        (lambda text: text.replace('"value": 1.0', '"value": NaN', 1), "*NaN is not a measurement*"),
        (
            lambda text: text.replace('"device_key": "cpu', '"device_key": "gpu'),
            "*device_key: expected 'cpu-*', found 'gpu-*'*",
        ),
    ],
    ids=[
        "truncated",
        "negative",
        "edited workload",
        "future",
        "no version",
        "unknown field",
        "empty",
        "list",
        "NaN",
        "device",
    ],
)
def test_a_baseline_that_cannot_be_trusted_stops_the_run(project, damage, line):
    """The run neither passes nor fails; the line names the file and the place."""
    project.write()
    project.record(1.0)
    project.baseline().write_text(damage(project.baseline().read_text()))
    result = project.run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {line}"])


def test_a_baseline_that_cannot_be_written_stops_an_update_before_it_measures(project):
    """Minutes of measuring are not lost at the end."""
    project.write()
    (project.path / "baselines").write_text("a file where the folder should be")
    result = project.run("--llmperf-update")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: cannot write *baselines* is not *"])


def test_a_folder_that_cannot_be_made_stops_the_run(project):
    """The run stops before it measures."""
    project.write()
    (project.path / "file").write_text("")
    result = project.run("--llmperf-json=file/cells")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --llmperf-json: cannot create */file/cells: Not a directory"])


def test_a_run_that_cannot_be_kept_goes_on_and_says_so(project):
    """A read-only checkout does not prevent measuring."""
    project.write()
    (project.path / ".llmperf").write_text("a file where the folder should be")
    result = project.run()
    assert result.ret == 0
    result.stdout.fnmatch_lines(["results could not be written: */.llmperf/runs: *"])
    assert project.run("--llmperf-journal=.llmperf/run.jsonl").ret == 1, "somebody asked for this one"


@pytest.mark.parametrize("variable", ["CI", "BUILD_NUMBER"])
def test_updating_under_ci_must_be_forced(project, monkeypatch, variable):
    """A CI job must not change its own baseline."""
    monkeypatch.setenv(variable, "1")
    project.write()
    result = project.run("--llmperf-update")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--llmperf-update under CI*--llmperf-force-update*"])
    assert project.run("--llmperf-update", "--llmperf-force-update").ret == 0
    assert project.baseline().exists()


def test_a_failed_test_keeps_the_baseline_as_it_was(project):
    """The journal holds the results."""
    project.write("""
        import pytest

        @pytest.mark.parametrize("llm", ["fp32"], indirect=True)
        def test_decode(llm, llmperf):
            llmperf.generate(llm)
            assert False
    """)
    result = project.run("--llmperf-update")
    result.stdout.fnmatch_lines(["baseline NOT updated: a test failed; the results are in *.jsonl"])
    assert not (project.path / "baselines").exists()


def test_update_new_only_leaves_what_is_known_alone(project):
    """A new test enters the baseline without a new run of the other tests."""
    project.write()
    project.record(1.0)
    project.write(
        project.path.joinpath("test_perf.py").read_text()
        + "\n\n@pytest.mark.parametrize('llm', ['fp32'], indirect=True)\n"
        + "def test_more(llm, llmperf):\n    llmperf.generate(llm)\n"
    )
    assert project.run("--llmperf-update=new").ret == 0
    cells = json.loads(project.baseline().read_text())["cells"]
    tpot = sorted(cell["test"].partition("::")[2] for cell in cells if cell["metric"] == "tpot_ms")
    assert tpot == ["test_decode[fp32]", "test_more[fp32]"]
