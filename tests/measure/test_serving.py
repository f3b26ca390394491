"""Serving from the command line: the engine fixture, llmperf.serve, and engines with their own model."""

from __future__ import annotations

import json

import pytest
from continuous_batching import needs_continuous_batching

from pytest_llmperf.storage.baseline_file import load_baseline

COMPARED = """
import pytest

@pytest.mark.parametrize("engine", ["fp32"], indirect=True)
def test_schedulers(engine, llmperf):
    naive = llmperf.serve(engine, scheduler="naive", requests=3, repeats=1)
    online = llmperf.serve(engine, requests=3, max_batch_size=2, rate=100, repeats=1)
    llmperf.speedup(online, over=naive)

@pytest.mark.parametrize("llm", ["fp32"], indirect=True)
def test_model(llm, llmperf):
    llmperf.serve(llm, scheduler="offline", requests=2, input_tokens=(3, 9), output_tokens=(1, 4), temperature=0.6,
                  repeats=1)
"""

OWN_ENGINE = """
import pytest_llmperf.engines.engine_registry as choose
import pytest_llmperf.runner.context as workplace
from pytest_llmperf.engines.engine import EngineResponse
from pytest_llmperf.errors import ModelError, UsageError


class Own:
    name = "own"
    model = {"model": "served", "revision": None, "quantization": None, "dtype": None, "attention": None}
    settings = {}
    vocabulary = 9
    longest = device = None

    def serve_one(self, request, sampling):
        return self.serve([request], max_concurrency=1, sampling=sampling)[0]

    def serve(self, requests, *, max_concurrency, sampling):
        return [EngineResponse(sent_s=0.0, first_s=1.0, last_s=2.0, input_tokens=len(request.prompt),
                       output_tokens=request.output_tokens) for request in requests]

    def release(self):
        pass

    def close(self):
        print("CLOSED")


def check(wanted):
    if wanted.base_url is None:
        raise UsageError("--llmperf-engine own needs --llmperf-base-url")


def make(wanted):
    print("MADE", wanted.model, wanted.base_url, wanted.device)
    if wanted.base_url == "http://refuses":
        raise ModelError("http://refuses does not answer")
    return Own()


workplace.ENGINES = choose.ENGINES = {"own": choose.EngineFactory(check=check, make=make)}
"""

OWN = ("--llmperf-engine=own", "--llmperf-base-url=http://here")

TWO_TESTS = """
import pytest

@pytest.mark.parametrize("scheduler", ["naive", "online"])
def test_serve(engine, llmperf, scheduler):
    llmperf.serve(engine, scheduler=scheduler, requests=2, repeats=1)
"""


@needs_continuous_batching
def test_schedulers_are_measured_recorded_and_compared(project):
    """Each scheduler and ratio is a workload; both fixtures share one loaded model."""
    project.write(COMPARED, conftest="")
    result = project.run("--llmperf-measure-only", "--llmperf-update", "-v")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(
        [
            "*test_schedulers[[]fp32[]] naive * tokens/s *measured*",
            "*test_schedulers[[]fp32[]] online * tokens/s *measured*",
            "*test_schedulers[[]fp32[]] online *×* *measured*",
            "*test_model[[]fp32[]] * tokens/s *measured*",
        ]
    )
    baseline = load_baseline(project.baseline())
    served = [workload for workload in baseline.workloads.values() if "speedup_over" not in workload.settings]
    ran = {workload.execution: workload for workload in served}
    assert {name: workload.batch_size for name, workload in ran.items()} == {"naive": 1, "online": 2, "offline": 2}
    assert ran["online"].settings["rate_per_s"] == 100
    assert ran["offline"].settings["input_lengths"] == "3-9"
    assert ran["offline"].sampling == "temperature=0.6"
    assert "serving_attention" in ran["online"].settings.keys() - ran["naive"].settings.keys()
    assert {cell.metric for cell in baseline.cells} >= {"output_tokens_per_s", "speedup_ratio", "lateness_ms"}


def test_a_throughput_that_fell_fails_its_test(project):
    """Throughput gates by default: an injected drop fails the run."""
    project.write(TWO_TESTS, conftest=OWN_ENGINE)
    for number in range(5):
        assert project.run(*OWN, "--llmperf-measure-only", "--llmperf-update", session=f"session {number}").ret == 0
    assert project.run(*OWN, session="unchanged").ret == 0
    result = project.run(*OWN, "--llmperf-inject=output:-30%", session="slower")
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["*output*-30*"])


def test_an_engine_with_its_own_model_is_made_once(project):
    """Test ids have the served model's name; the engine is closed at the end."""
    project.write(TWO_TESTS, conftest=OWN_ENGINE)
    result = project.run(*OWN, "--llmperf-model=org/name", "-sv", "--llmperf-measure-only")
    result.assert_outcomes(passed=2)
    assert result.stdout.str().count("MADE org/name http://here cpu") == 1
    assert result.stdout.str().count("CLOSED") == 1
    result.stdout.fnmatch_lines(["*test_serve[[]naive-org/name[]]*", "*test_serve[[]online-org/name[]]*"])


def test_an_engine_that_cannot_be_had_is_tried_once(project):
    """Each of its tests has a one-line error."""
    project.write(TWO_TESTS, conftest=OWN_ENGINE)
    result = project.run("--llmperf-engine=own", "--llmperf-base-url=http://refuses", "-s")
    result.assert_outcomes(errors=2)
    assert result.stdout.str().count("MADE") == 1
    result.stdout.fnmatch_lines(["error: *test_serve*: http://refuses does not answer"])


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--llmperf-engine=nobody"], "unknown engine 'nobody': expected one of transformers, own"),
        (["--llmperf-engine=own"], "--llmperf-engine own needs --llmperf-base-url"),
        (
            ["--llmperf-base-url=http://here"],
            "--llmperf-base-url http://here: engine 'transformers' does not use a server*",
        ),
        (["--llmperf-schedulers=naive,eager"], "--llmperf-schedulers 'eager': expected some of naive, offline, online"),
        (["--llmperf-rate=0"], "--llmperf-rate '0': expected requests per second, above 0"),
        (["--llmperf-rate=nan"], "--llmperf-rate 'nan': expected requests per second, above 0"),
        (["--llmperf-throughput-lengths=9-3"], "--llmperf-throughput-lengths '9-3': expected LOW-HIGH in tokens*"),
        (["--llmperf-throughput-sequences=0"], "--llmperf-throughput-sequences '0': expected a whole number*"),
        (["--llmperf-shared-prefix=-1"], "--llmperf-shared-prefix '-1': expected a whole number of at least 0"),
        (["--llmperf-max-batch-size=0"], "--llmperf-max-batch-size '0': expected a whole number*"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_option_is_one_line_and_exit_code_4(project, arguments, line):
    """Before anything is measured."""
    project.write(TWO_TESTS, conftest=OWN_ENGINE)
    result = project.run("--llmperf-quantization=fp32", *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {line}"])


@pytest.mark.parametrize(
    ("arguments", "call", "line"),
    [
        ([], "llmperf.serve(engine, rate=-1)", "rate=-1: expected requests per second*"),
        ([], "llmperf.serve(engine, input_tokens=9000)", "9000 input and 4 output tokens of one request*8193*"),
        (
            ["--llmperf-shared-prefix=4"],
            "llmperf.serve(engine)",
            "shared_prefix=4: expected fewer than the 4 tokens of*",
        ),
        (
            [],
            "llmperf.serve(engine, prompt=[[5]], input_tokens=1)",
            "input_tokens=1 with a prompt, which has its own length: leave out one",
        ),
        ([], "llmperf.serve(engine, prompt=[])", "prompt: expected a list of sequences, each a list of token ids*"),
        ([], "llmperf.serve(engine, top_p=2)", "top_p=2: expected a number above 0 and at most 1*"),
        (["--llmperf-inject=work:+15%"], "llmperf.serve(engine)", "--llmperf-inject work:+15%: served requests*"),
    ],
)
def test_a_wrong_call_is_one_line(project, arguments, call, line):
    """The test is an error, and nothing is recorded."""
    project.write(f"def test_serve(engine, llmperf): {call}", conftest="")
    result = project.run("--llmperf-quantization=fp32", *arguments)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"error: *test_serve*: {line}"])


@needs_continuous_batching
def test_the_suite_serves_by_each_scheduler(project):
    """If the module is named; the suite as a whole excludes it."""
    suite = ("--pyargs", "pytest_llmperf.suite.serving", "--llmperf-quantization=fp32", "--llmperf-measure-only")
    small = ("--llmperf-serve-requests=2", "--llmperf-throughput-sequences=2", "--llmperf-throughput-lengths=2-4")
    result = project.run(*suite, *small)
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*test_schedulers[[]fp32[]] offline *×*", "*test_throughput[[]fp32[]] * tokens/s*"])


def test_the_suite_serves_each_length_with_the_shared_prefix_of_the_options(project):
    """The throughput test has lengths of its own, and no shared prefix."""
    suite = ("--pyargs", "pytest_llmperf.suite.serving", "--llmperf-measure-only", "--llmperf-json=out", *OWN)
    small = ("--llmperf-serve-requests=2", "--llmperf-throughput-sequences=2", "--llmperf-throughput-lengths=2-4")
    project.write("", conftest=OWN_ENGINE)
    options = ("--llmperf-schedulers=naive", "--llmperf-input-tokens=6,8", "--llmperf-shared-prefix=5")
    result = project.run(*suite, *small, *options)
    assert result.ret == 0, result.outlines
    entries = [json.loads(path.read_text()) for path in (project.path / "out").glob("*.json")]
    workloads = [entry["results"][0]["workload"] for entry in entries]
    found = {(one["execution"], one["input_tokens"], one["settings"].get("shared_prefix")) for one in workloads}
    assert {("naive", 6, 5), ("naive", 8, 5)} < found
    assert {shared for execution, _, shared in found if execution == "offline"} == {None}


def test_an_engine_in_this_process_is_made_with_prefix_caching_if_the_option_asks_for_it(project):
    """It is decided when the model is loaded."""
    project.write(TWO_TESTS, conftest=OWN_ENGINE.replace('print("MADE", ', 'print("MADE", wanted.prefix_caching, '))
    for option, caching in ((0, False), (2, True)):
        result = project.run(*OWN, "-s", "--llmperf-measure-only", f"--llmperf-shared-prefix={option}")
        assert f"MADE {caching} " in result.stdout.str()


@needs_continuous_batching
def test_isolated_tests_share_a_process_a_model(project):
    """Tests are grouped by the engine's model."""
    project.write(COMPARED, conftest="")
    result = project.run("--llmperf-isolate", "--llmperf-measure-only")
    result.assert_outcomes(passed=2)
    logs = list((project.path / ".llmperf").rglob("*.told"))
    assert len(logs) == 1
